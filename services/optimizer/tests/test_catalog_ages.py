"""How old a price is: dates as exact as their source has them, never fresher than they may be."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

from skyloom_optimizer.catalog.ages import age_in_days
from skyloom_optimizer.snapshot import OfferSnapshot

NOW = dt.datetime(2026, 7, 1, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("as_of", "days"),
    [
        ("2026-06-30", 1),
        ("2026-06", 30),
        ("2026", 181),
        ("2025/2026", 546),
        ("2027-01-01", 0),
        ("", None),
        ("own", None),
    ],
)
def test_ages(as_of: str, days: int | None) -> None:
    assert age_in_days(as_of, NOW) == days


def test_every_price_has_a_source_with_a_date(snapshot: OfferSnapshot) -> None:
    for prices in (snapshot.on_demand, snapshot.spot):
        codes = np.unique(prices.source[~np.isnan(prices.price)]).tolist()
        sources = [snapshot.sources[code] for code in codes]
        assert sources and all(source.code and source.as_of for source in sources)
        assert all(age_in_days(source.as_of, 1.9e9) is not None for source in sources)
