"""Is this feed believable? Pure: rows and what was known before in, a verdict out.

A part is taken or refused as a whole; single prices that cannot be right are left out, and the earlier ones stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from skyloom_optimizer.refresh.model import FeedInfo, FeedRow

Before = Mapping[tuple[str, str, str, str], tuple[float | None, float | None]]
"""(cloud, region, zone, instance type) to the prices (on-demand, spot) that were known."""


@dataclass(frozen=True)
class Rules:
    """`max_drop`: share of offers that may disappear; `max_jump`: factor up or down; `max_strange`: share of strange rows."""

    max_drop: float = 0.3
    max_market_drop: float = 0.95
    max_jump: float = 4.0
    max_spot_jump: float = 20.0
    max_strange: float = 0.05
    lowest: float = 0.0002
    highest: float = 2000.0
    few: int = 20
    """With fewer offers than this a share says nothing."""


@dataclass(frozen=True)
class Verdict:
    """`refused` empty = accepted. `notes`: what was left out and why; `held`: prices that jumped too far."""

    rows: Sequence[FeedRow] = ()
    refused: str = ""
    notes: Sequence[str] = ()
    held: int = 0


@dataclass
class _Findings:
    strange: list[str] = field(default_factory=list)
    jumps: list[str] = field(default_factory=list)
    compared: int = 0


def judge(
    info: FeedInfo, rows: Sequence[FeedRow], before: Before, rules: Rules, *, force: bool = False
) -> Verdict:
    """`force` admits price jumps and short lists; a wrong currency or a broken row is never admitted."""
    broken = _broken(rows)
    if broken:
        return Verdict(refused=broken)
    if not force and (short := _too_short(info, len(rows), len(before), rules)):
        return Verdict(refused=short)
    found = _Findings()
    kept = [_checked(info.cloud, row, before, rules, found, force) for row in rows]
    if len(found.strange) > rules.max_strange * len(rows):
        return Verdict(
            refused=f"{len(found.strange)} of {len(rows)} prices cannot be right, such as {found.strange[0]}"
        )
    if len(found.jumps) > max(3, rules.max_strange * found.compared):
        return Verdict(
            refused=f"{len(found.jumps)} of {found.compared} prices jump, such as {found.jumps[0]}",
            held=len(found.jumps),
        )
    return Verdict(kept, notes=[*found.strange, *found.jumps], held=len(found.jumps))


def _broken(rows: Sequence[FeedRow]) -> str:
    if not rows:
        return "the list is empty"
    keys: set[tuple[str, str, str]] = set()
    for row in rows:
        if row.currency != "USD":
            return f"{row.instance_type} is priced in {row.currency!r}; only USD is known"
        if not row.instance_type or "\n" in row.instance_type + row.region + row.zone:
            return f"a row has no usable instance type: {row!r}"
        key = (row.region, row.zone, row.instance_type)
        if key in keys:
            return f"{row.instance_type} is listed twice in {row.zone or row.region}"
        keys.add(key)
    return ""


def _too_short(info: FeedInfo, now: int, before: int, rules: Rules) -> str:
    most = rules.max_market_drop if info.market else rules.max_drop
    if before >= rules.few and now < before * (1 - most):
        return f"{now} offers where {before} were known: more than {most:.0%} are missing"
    return ""


def _checked(
    cloud: str, row: FeedRow, before: Before, rules: Rules, found: _Findings, force: bool
) -> FeedRow:
    known = before.get((cloud, row.region, row.zone, row.instance_type), (None, None))
    price = _price(row, "price", row.price, known[0], rules.max_jump, rules, found, force)
    spot = _price(row, "spot price", row.spot_price, known[1], rules.max_spot_jump, rules, found, force)
    if price is not None and spot is not None and spot > price * 1.0001:
        # Some sellers charge more for spot when it is scarce; the machine is then bought at the fixed price.
        spot = None
    if price == row.price and spot == row.spot_price:
        return row
    return replace(row, price=price, spot_price=spot)


def _price(
    row: FeedRow,
    what: str,
    now: float | None,
    before: float | None,
    jump: float,
    rules: Rules,
    found: _Findings,
    force: bool,
) -> float | None:
    if now is None:
        return None
    where = f"{row.instance_type} in {row.zone or row.region or 'its cloud'}"
    if not rules.lowest <= now <= rules.highest:
        found.strange.append(f"{where}: {what} ${now:g} an hour")
        return None
    if before is None or not before:
        return now
    found.compared += 1
    if not force and max(now / before, before / now) > jump:
        found.jumps.append(f"{where}: {what} from ${before:g} to ${now:g}")
        return None
    return now
