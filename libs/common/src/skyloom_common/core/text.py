"""Small text helpers for people: near-miss suggestions, sizes, ages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Optional

_AS_ALIKE = 0.11
_DIGITS = str.maketrans("oil", "011")


def nearest(word: str, known: Iterable[str]) -> Optional[str]:
    """The known word that `word` was probably meant to be, or None."""
    from difflib import get_close_matches  # only who mistyped pays for it

    names = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), list(names), n=1, cutoff=0.6)
    return names[found[0]] if found else None


def nearest_few(word: str, known: Iterable[str], most: int = 2) -> list[str]:
    """The known words that `word` may have been meant to be: several where the first is not clearly the one."""
    from difflib import SequenceMatcher, get_close_matches

    names = {_looks(name): name for name in sorted(known)}
    found = get_close_matches(_looks(word), list(names), n=most, cutoff=0.6)
    alike = [SequenceMatcher(None, name, _looks(word)).ratio() for name in found]
    close = [name for name, ratio in zip(found, alike) if ratio >= alike[0] - _AS_ALIKE and alike[0] < 1]
    return [names[name] for name in sorted(close or found[:1])]


def _looks(word: str) -> str:
    """Letters that are taken for digits are the same."""
    return word.lower().translate(_DIGITS)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' or an empty string, to be put behind a sentence."""
    name = nearest(word, known)
    return f"; did you mean {name!r}?" if name else ""


def few(names: Sequence[str], most: int = 4) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def age(seconds: float) -> str:
    """A duration for a table: '12s', '5m 3s', '2h 10m', '3d 4h'. Negative durations (clock jumps) read as '0s'."""
    total = max(0, int(seconds))
    if total < 60:
        return f"{total}s"
    minutes, rest = divmod(total, 60)
    if minutes < 60:
        return f"{minutes}m {rest}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h" if hours else f"{days}d"
