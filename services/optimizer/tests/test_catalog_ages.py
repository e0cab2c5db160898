"""How old a price is: dates as exact as their source has them, never fresher than they may be."""

from __future__ import annotations

import datetime as dt

import pytest

from skyloom_optimizer.catalog.ages import age_in_days

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
