"""What one endpoint's description can get wrong, the same wherever it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.endpoints.url import parse_url


def check_endpoint(one: Endpoint, where: str) -> None:
    """Raises InvalidRequest."""
    parse_url(one.url)
    for name, value in (("weight", one.weight), ("capacity", one.capacity)):
        if value is not None and not 0 < value < math.inf:
            raise InvalidRequest(f"{where}: endpoint {one.id}: {name} {value:g} is not a number above 0")
    price = one.price_per_hour
    if price is not None and not 0 <= price < math.inf:
        raise InvalidRequest(
            f"{where}: endpoint {one.id}: price_per_hour {price:g} is not a number of at least 0"
        )


def check_endpoints(endpoints: Sequence[Endpoint], where: str) -> None:
    """Those of one service. Counts and connections hang on the id: two with the same one would be mixed up."""
    seen: set[str] = set()
    for one in endpoints:
        check_endpoint(one, where)
        if one.id in seen:
            raise InvalidRequest(f"{where}: two endpoints have the id {one.id!r}; give each its own")
        seen.add(one.id)
