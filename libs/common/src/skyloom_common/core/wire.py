"""Frozen dataclasses to JSON and back, by their type hints; pure Python so that the agent and the CLI can carry it.

`strict=True` refuses unknown fields (requests); `strict=False` ignores them (responses, events, stored rows),
so that versions can meet. Fields that are None or equal to their default are left out on the way out.
Supported types: None, bool, int, float, str, Enum(str), Optional/Union of those and dataclasses, tuple[X, ...],
list[X], dict[str, X], Any, nested dataclasses.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from functools import cache
from typing import Any, TypeVar, Union

from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean

T = TypeVar("T")
_UNIONS = (Union, getattr(types, "UnionType", Union))


def to_wire(value: Any) -> Any:
    """JSON-able form of a contract (or of containers of contracts)."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass_to_wire(value)
    if isinstance(value, dict):
        return {str(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_wire(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no wire form")


def to_full_wire(value: Any) -> Any:
    """The same with every field of every contract, also those that are None or equal to their default: for programs that
    read what a command prints, which want the same keys in every row."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_full_wire(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_full_wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_full_wire(item) for item in value]
    return to_wire(value)


def from_wire(cls: type[T], data: Any, *, strict: bool = False, path: str = "") -> T:
    """An instance of `cls` from its wire form. Raises InvalidRequest naming the field, the value and the right form."""
    return typing.cast(T, _decode(cls, data, strict, path))


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON of the wire form."""
    return json.dumps(to_wire(value), separators=(",", ":"), ensure_ascii=False).encode()


def loads(cls: type[T], data: Union[bytes, str], *, strict: bool = False) -> T:
    """The reverse of `dumps`."""
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    return from_wire(cls, parsed, strict=strict)


def _dataclass_to_wire(value: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    kind: Any = type(value)
    for name, default in _outgoing(kind):
        item = getattr(value, name)
        if item is None or (default is not dataclasses.MISSING and item == default):
            continue
        out[name] = to_wire(item)
    return out


@cache
def _outgoing(cls: Any) -> tuple[tuple[str, Any], ...]:
    rows: list[tuple[str, Any]] = []
    for field in dataclasses.fields(cls):
        default: Any = field.default
        factory: Any = field.default_factory
        if default is dataclasses.MISSING and factory is not dataclasses.MISSING:
            default = factory()
        rows.append((field.name, default))
    return tuple(rows)


@cache
def _incoming(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(kind: Any, data: Any, strict: bool, path: str) -> Any:
    if kind is Any:
        return data
    origin = typing.get_origin(kind)
    if origin in _UNIONS:
        return _decode_union(kind, data, strict, path)
    if origin in (tuple, list):
        return _decode_sequence(kind, origin, data, strict, path)
    if origin is dict:
        item = typing.get_args(kind)[1]
        if not isinstance(data, dict):
            raise _wrong(path, data, "a mapping")
        return {str(key): _decode(item, value, strict, f"{path}.{key}") for key, value in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, strict, path)
    return _decode_scalar(kind, data, path)


def _decode_union(kind: Any, data: Any, strict: bool, path: str) -> Any:
    options = typing.get_args(kind)
    if data is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    failure: InvalidRequest | None = None
    for option in rest:
        try:
            return _decode(option, data, strict, path)
        except InvalidRequest as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _decode_sequence(kind: Any, origin: Any, data: Any, strict: bool, path: str) -> Any:
    if not isinstance(data, (list, tuple)):
        raise _wrong(path, data, "a list")
    item = typing.get_args(kind)[0]
    return origin(_decode(item, value, strict, f"{path}[{index}]") for index, value in enumerate(data))


def _decode_dataclass(kind: Any, data: Any, strict: bool, path: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(path, data, f"a {kind.__name__} mapping")
    hints = _incoming(kind)
    values: dict[str, Any] = {}
    for key, item in data.items():
        if key in hints:
            values[key] = _decode(hints[key], item, strict, f"{path}.{key}" if path else key)
        elif strict:
            where = f"{path}.{key}" if path else key
            raise InvalidRequest(
                f"{where}: unknown field{did_you_mean(key, hints)}", details={"field": where}
            )
    for key in _nullable(kind):
        values.setdefault(key, None)
    try:
        return kind(**values)
    except TypeError as error:
        missing = [f.name for f in dataclasses.fields(kind) if _required(f) and f.name not in values]
        where = f"{path}.{missing[0]}" if path and missing else (missing[0] if missing else path)
        raise InvalidRequest(
            f"{where}: missing" if missing else f"{path}: {error}", details={"field": where}
        ) from error


@cache
def _nullable(cls: type) -> tuple[str, ...]:
    """Fields without a default that may be None: on the wire, None is left out."""
    hints = _incoming(cls)
    return tuple(
        field.name
        for field in dataclasses.fields(cls)
        if _required(field) and type(None) in typing.get_args(hints[field.name])
    )


def _required(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _decode_scalar(kind: Any, data: Any, path: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError:
            raise _wrong(path, data, "one of " + ", ".join(str(member.value) for member in kind)) from None
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind in (str, bool, float) and isinstance(data, kind):
        return data
    if kind is int and isinstance(data, int) and not isinstance(data, bool):
        return data
    raise _wrong(path, data, f"a {getattr(kind, '__name__', kind)}")


def _wrong(path: str, data: Any, right: str) -> InvalidRequest:
    shown = repr(data)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return InvalidRequest(f"{path or 'body'}: {shown} is not {right}", details={"field": path})
