"""How old a price is, from the date that its source gives. Pure."""

from __future__ import annotations

import datetime as dt


def age_in_days(as_of: str, now: float) -> int | None:
    """From a date as exact as its source has it (2026, 2026-05, 2026-05-20, 2025/2026): taken as early as it may be,
    so that no price looks fresher than it is."""
    text = as_of.partition("/")[0]
    try:
        first = {4: f"{text}-01-01", 7: f"{text}-01"}.get(len(text), text)
        seen = dt.datetime.fromisoformat(first).replace(tzinfo=dt.UTC)
    except ValueError:
        return None
    return max(0, int((now - seen.timestamp()) // 86400))
