"""Numbers, sizes, durations, ports and texts as people write them. Every function reports a problem and returns None, or the value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Optional

from skyloom_common.contracts.task.model import Quantity
from skyloom_common.contracts.task.problems import Field

_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_COUNT = re.compile(rf"(?P<number>{_NUMBER})(?P<plus>\+)?")
_SIZE = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>[kmgtp](?:i?b|i)?|b)?\s*(?P<plus>\+)?", re.IGNORECASE)
_PER_CPU = re.compile(rf"(?P<number>{_NUMBER})x(?P<plus>\+)?", re.IGNORECASE)
_DURATION = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>[smhdw])?", re.IGNORECASE)
_PORTS = re.compile(r"(?P<first>[0-9]+)(?:\s*-\s*(?P<last>[0-9]+))?")

# Both spellings of a unit are binary here: 16GB and 16Gi are the same machine.
_GIB = {"b": 2.0**-30, "k": 2.0**-20, "m": 2.0**-10, "g": 1.0, "t": 2.0**10, "p": 2.0**20}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def as_number(value: Any) -> Optional[float]:
    """A finite number, also when written as text."""
    if is_number(value):
        return float(value)
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    return None


def tidy(number: float) -> str:
    """4.0 -> "4", 0.5 -> "0.5"; never with an exponent, and exactly the same number when read again."""
    if float(number).is_integer():
        return str(int(number))
    text = repr(float(number))
    if "e" not in text:
        return text
    from decimal import Decimal

    return format(Decimal(text), "f")


def text(field: Field, right: str, *, empty: bool = False) -> Optional[str]:
    """Text; numbers and booleans are not taken for text."""
    if isinstance(field.value, str) and (empty or field.value.strip()):
        return field.value
    field.refuse_value("text" if not isinstance(field.value, str) else "a value", right)
    return None


def label_text(field: Field, right: str) -> Optional[str]:
    """Text, or a plain scalar made into text (`version: 2`)."""
    if isinstance(field.value, (str, int, float)) and field.value != "":
        return stringified(field.value)
    field.refuse_value("text", right)
    return None


def stringified(value: Any) -> str:
    """As the ecosystem does it: True -> "True", 7 -> "7"."""
    return value if isinstance(value, str) else str(value)


def boolean(field: Field) -> Optional[bool]:
    value = field.value
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE + _FALSE:
        return value.strip().lower() in _TRUE
    field.refuse_value("true or false", "true or false")
    return None


def integer(
    field: Field, right: str, *, low: Optional[int] = None, high: Optional[int] = None
) -> Optional[int]:
    number = as_number(field.value)
    if number is None or not number.is_integer():
        field.refuse_value("a whole number", right)
        return None
    if (low is not None and number < low) or (high is not None and number > high):
        field.refuse_value("in range", right)
        return None
    return int(number)


def number(field: Field, right: str, *, low: float = 0.0, exclusive: bool = False) -> Optional[float]:
    value = as_number(field.value)
    if value is None:
        field.refuse_value("a number", right)
        return None
    if value < low or (exclusive and value == low):
        field.refuse_value("in range", right)
        return None
    return value


def choice(field: Field, allowed: Iterable[str], *, upper: bool = False) -> Optional[str]:
    """One of `allowed`, in any letter case, as `allowed` spells it."""
    names = tuple(allowed)
    wanted = str(field.value).strip() if isinstance(field.value, (str, bool, int)) else None
    wanted = wanted if wanted is None else (wanted.upper() if upper else wanted.lower())
    if wanted in names:
        return wanted
    field.refuse_value("known here", "one of " + ", ".join(names))
    return None


def cpus(field: Field) -> Optional[Quantity]:
    right = "a number of vCPUs such as 4, or 4+ (at least)"
    match = _COUNT.fullmatch(_stripped(field.value))
    if not match:
        field.refuse_value("a number of vCPUs", right)
        return None
    return _positive(field, Quantity(float(match["number"]), bool(match["plus"])), right)


def memory(field: Field, *, zero: bool = False) -> Optional[Quantity]:
    right = "a number of GB such as 16, 16GB, 16+ (at least), 4x (per vCPU) or 4x+"
    value = _stripped(field.value)
    per_cpu = _PER_CPU.fullmatch(value)
    if per_cpu:
        return _positive(field, Quantity(float(per_cpu["number"]), bool(per_cpu["plus"]), True), right)
    quantity = _size(value)
    if quantity is None:
        field.refuse_value("a size", right)
        return None
    return quantity if zero and quantity.value == 0 else _positive(field, quantity, right)


def disk_size(field: Field) -> Optional[Quantity]:
    """Whole GB; what is smaller than the next GB is rounded up."""
    right = "a number of GB such as 500, 500GB or 500+ (at least)"
    quantity = _size(_stripped(field.value))
    if quantity is None:
        field.refuse_value("a size", right)
        return None
    return _positive(field, Quantity(float(math.ceil(quantity.value)), quantity.at_least), right)


def gib(field: Field, right: str) -> Optional[float]:
    """A plain size in GiB, without `+`."""
    quantity = _size(_stripped(field.value))
    if quantity is None or quantity.at_least or quantity.value <= 0:
        field.refuse_value("a size", right)
        return None
    return quantity.value


def parse_size(value: str) -> Optional[Quantity]:
    """`16`, `16GB+`; None when it is not a size."""
    return _size(value)


def seconds(field: Field, right: str = "seconds, or a time such as 30s, 5m, 2h or 1d") -> Optional[float]:
    found = _duration(field, default_unit="s")
    if found is None:
        field.refuse_value("a time", right)
    return found


def minutes(
    field: Field, right: str = "minutes such as 10, or a time such as 10m, 2h, 1d or 1w"
) -> Optional[int]:
    found = _duration(field, default_unit="m")
    if found is None:
        field.refuse_value("a time", right)
        return None
    return math.ceil(found / 60)


def ports(field: Field) -> tuple[str, ...]:
    """Single ports and ranges in every form, merged, sorted and written as "8080" or "8000-8010"."""
    if isinstance(field.value, (list, tuple, set, frozenset)):
        found = [
            span
            for element in Field(list(field.value), field.path, field.report).elements()
            for span in _spans(element)
        ]
    else:
        found = _spans(field)
    return tuple(f"{first}-{last}" if last > first else str(first) for first, last in _joined(found))


def port_numbers(spans: Iterable[str]) -> Iterable[tuple[int, int]]:
    for span in spans:
        first, _, last = span.partition("-")
        yield int(first), int(last or first)


def texts(field: Field, right: str) -> tuple[str, ...]:
    """A list of texts; one text alone counts as a list of one."""
    if isinstance(field.value, str):
        return (field.value,)
    if not isinstance(field.value, (list, tuple)):
        field.refuse_value("a list", right)
        return ()
    found = [text(element, right) for element in field.elements()]
    return tuple(item for item in found if item is not None)


def text_map(field: Field, right: str) -> dict[str, str]:
    """A mapping of text to text."""
    if not field.is_mapping(right):
        return {}
    found = {key: label_text(item, right) for key, item in field.items()}
    return {key: value for key, value in found.items() if value is not None}


def _stripped(value: Any) -> str:
    return str(value).strip() if isinstance(value, str) or is_number(value) else ""


def _size(value: str) -> Optional[Quantity]:
    match = _SIZE.fullmatch(value)
    if not match:
        return None
    unit = (match["unit"] or "g")[0].lower()
    return Quantity(float(match["number"]) * _GIB[unit], bool(match["plus"]))


def _positive(field: Field, quantity: Quantity, right: str) -> Optional[Quantity]:
    if quantity.value > 0 and math.isfinite(quantity.value):
        return quantity
    field.refuse_value("more than 0", right)
    return None


def _duration(field: Field, default_unit: str) -> Optional[float]:
    match = _DURATION.fullmatch(_stripped(field.value))
    if not match:
        return None
    return float(match["number"]) * _SECONDS[(match["unit"] or default_unit).lower()]


def _spans(field: Field) -> list[tuple[int, int]]:
    right = "ports from 1 to 65535 such as 8080, 8000-8010 or a list of those"
    found: list[tuple[int, int]] = []
    for part in _stripped(field.value).split(","):
        match = _PORTS.fullmatch(part.strip())
        first = int(match["first"]) if match else 0
        last = int(match["last"] or first) if match else 0
        if not 1 <= first <= last <= 65535:
            field.refuse_value("a port or a range of ports", right)
            return []
        found.append((first, last))
    return found


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined
