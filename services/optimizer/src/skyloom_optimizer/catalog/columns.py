"""The container: tables of dictionary-encoded columns in one file, made for loading in milliseconds.

Knows bytes and arrays only, not what a column means. Nothing in a file depends on the clock, the machine or
hash order, so the same rows give the same bytes. docs/catalog.md describes the layout.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"SKYCOL01"
_LENGTH = struct.Struct("<I")
_CODE_TYPES = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"))


class CorruptContainer(ValueError):
    """The file is not a container, is cut short, or its check sum differs."""


@dataclass(frozen=True)
class TextColumn:
    """`pool[codes[i]]` is the text of row i."""

    codes: NDArray[Any]
    pool: list[str]

    def values(self) -> list[str]:
        pool = self.pool
        return [pool[code] for code in self.codes.tolist()]


@dataclass(frozen=True)
class NumberColumn:
    """Exact decimals: `scaled[codes[i]] / 10**decimals`; code 0 is "no value" (NaN)."""

    codes: NDArray[Any]
    scaled: NDArray[np.int64]
    decimals: int

    @cached_property
    def floats(self) -> NDArray[np.float64]:
        """One float64 for each row, NaN where there is no value."""
        pool = np.empty(len(self.scaled) + 1, dtype=np.float64)
        pool[0] = np.nan
        pool[1:] = self.scaled / float(10**self.decimals)
        floats: NDArray[np.float64] = pool[self.codes]
        return floats

    def texts(self) -> list[str]:
        """Decimal text without trailing zeros, empty where there is no value."""
        pool = [""] + [decimal_text(value, self.decimals) for value in self.scaled.tolist()]
        return [pool[code] for code in self.codes.tolist()]


@dataclass(frozen=True)
class IndexColumn:
    """Row numbers of another table."""

    values: NDArray[Any]


Column = TextColumn | NumberColumn | IndexColumn
Table = dict[str, Column]


def decimal_text(scaled: int, decimals: int) -> str:
    if decimals == 0:
        return str(scaled)
    sign, digits = ("-" if scaled < 0 else ""), str(abs(scaled)).rjust(decimals + 1, "0")
    return (sign + digits[:-decimals] + "." + digits[-decimals:]).rstrip("0").rstrip(".")


def text_column(values: Sequence[str]) -> TextColumn:
    pool = sorted(set(values))
    number = {text: code for code, text in enumerate(pool)}
    return TextColumn(_narrow([number[value] for value in values], len(pool)), pool)


def number_column(values: Sequence[str]) -> NumberColumn:
    """From decimal texts. Raises ValueError naming the first that is not a finite number."""
    parsed: dict[str, Decimal] = {}
    for text in dict.fromkeys(values):
        if text:
            parsed[text] = _decimal(text)
    decimals = max(
        (max(0, -int(value.normalize().as_tuple().exponent)) for value in parsed.values()), default=0
    )
    scaled = {text: int(value.scaleb(decimals)) for text, value in parsed.items()}
    pool = sorted(set(scaled.values()))
    number = {value: code for code, value in enumerate(pool, 1)}
    codes = [number[scaled[value]] if value else 0 for value in values]
    return NumberColumn(_narrow(codes, len(pool) + 1), np.array(pool, dtype=np.int64), decimals)


def index_column(values: Sequence[int], size: int) -> IndexColumn:
    return IndexColumn(_narrow(values, size))


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except ArithmeticError:
        raise ValueError(f"{text!r} is not a number") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _narrow(values: Sequence[int], size: int) -> NDArray[Any]:
    for kind in _CODE_TYPES:
        if size <= np.iinfo(kind).max + 1:
            return np.array(values, dtype=kind)
    raise ValueError(f"{size} distinct values are more than a column holds")


def pack(tables: Mapping[str, Table], meta: Mapping[str, Any]) -> bytes:
    """The whole container. The check sum is over uncompressed content: it is the catalog's identity."""
    header: dict[str, Any] = {"meta": dict(meta), "tables": {}}
    blocks: list[bytes] = []
    digest = hashlib.sha256()
    for name in sorted(tables):
        raw = bytearray()
        columns = {key: _write_column(tables[name][key], raw) for key in sorted(tables[name])}
        digest.update(name.encode() + b"\0" + bytes(raw))
        block = zlib.compress(bytes(raw), 9)
        blocks.append(block)
        header["tables"][name] = {"columns": columns, "raw": len(raw), "packed": len(block)}
    header["sha256"] = digest.hexdigest()
    head = zlib.compress(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), 9)
    return b"".join([MAGIC, _LENGTH.pack(len(head)), head, *blocks])


def _write_column(column: Column, raw: bytearray) -> dict[str, Any]:
    if isinstance(column, TextColumn):
        pool = "\n".join(column.pool).encode()
        if pool.count(b"\n") != max(0, len(column.pool) - 1):
            raise ValueError("a text value holds a line break")
        return {"kind": "text", "codes": _write_array(column.codes, raw), "pool": _write_bytes(pool, raw),
                "size": len(column.pool)}  # fmt: skip
    if isinstance(column, NumberColumn):
        return {"kind": "number", "codes": _write_array(column.codes, raw), "decimals": column.decimals,
                "pool": _write_array(np.diff(column.scaled, prepend=np.int64(0)), raw)}  # fmt: skip
    return {"kind": "index", "codes": _write_array(column.values, raw)}


def _write_array(array: NDArray[Any], raw: bytearray) -> list[Any]:
    """Byte planes one after the other: the high bytes of sorted rows compress to almost nothing."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    planes = np.ascontiguousarray(little).view(np.uint8).reshape(len(array), little.itemsize).T
    return [little.dtype.str, len(array), *_write_bytes(planes.tobytes(), raw)]


def _write_bytes(data: bytes, raw: bytearray) -> list[int]:
    raw.extend(data)
    return [len(raw) - len(data), len(data)]


class Container:
    """A packed file opened for reading; each table is inflated when it is first asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        if bytes(self._data[: len(MAGIC)]) != MAGIC:
            raise CorruptContainer("this is not a catalog container; build one with: make catalog SOURCE=DIR")
        try:
            start = len(MAGIC) + _LENGTH.size
            (length,) = _LENGTH.unpack(self._data[len(MAGIC) : start])
            header = json.loads(zlib.decompress(self._data[start : start + length]))
        except (struct.error, zlib.error, ValueError) as error:
            raise CorruptContainer(f"the container's header cannot be read: {error}") from error
        self.meta: dict[str, Any] = header["meta"]
        self.sha256: str = header["sha256"]
        self._tables: dict[str, Any] = header["tables"]
        self._offsets = self._place_blocks(start + length)

    def _place_blocks(self, position: int) -> dict[str, int]:
        offsets = {}
        for name in sorted(self._tables):
            offsets[name] = position
            position += self._tables[name]["packed"]
        if position != len(self._data):
            raise CorruptContainer(
                f"the container is {len(self._data)} bytes long, its header says {position}"
            )
        return offsets

    def names(self) -> list[str]:
        return sorted(self._tables)

    def table(self, name: str, only: Iterable[str] | None = None) -> Table:
        """The columns of a table (or only some of them)."""
        columns = self._tables[name]["columns"]
        raw = self._inflate(name)
        return {key: _read_column(columns[key], raw) for key in (columns if only is None else only)}

    def verify(self) -> None:
        """Raises CorruptContainer unless the content has the check sum that the header gives."""
        digest = hashlib.sha256()
        for name in self.names():
            digest.update(name.encode() + b"\0" + self._inflate(name))
        if digest.hexdigest() != self.sha256:
            raise CorruptContainer("the container's content does not match its check sum")

    def _inflate(self, name: str) -> bytes:
        about, offset = self._tables[name], self._offsets[name]
        try:
            raw = zlib.decompress(self._data[offset : offset + about["packed"]], bufsize=about["raw"])
        except zlib.error as error:
            raise CorruptContainer(f"table {name} cannot be read: {error}") from error
        if len(raw) != about["raw"]:
            raise CorruptContainer(f"table {name} is {len(raw)} bytes long, its header says {about['raw']}")
        return raw


def _read_column(about: dict[str, Any], raw: bytes) -> Column:
    codes = _read_array(about["codes"], raw)
    if about["kind"] == "text":
        offset, length = about["pool"]
        pool = raw[offset : offset + length].decode().split("\n") if about["size"] else []
        return TextColumn(codes, pool)
    if about["kind"] == "number":
        return NumberColumn(
            codes, np.cumsum(_read_array(about["pool"], raw), dtype=np.int64), about["decimals"]
        )
    return IndexColumn(codes)


def _read_array(about: list[Any], raw: bytes) -> NDArray[Any]:
    kind, count, offset, length = np.dtype(about[0]), about[1], about[2], about[3]
    planes = np.frombuffer(raw, dtype=np.uint8, count=length, offset=offset).reshape(kind.itemsize, count)
    array: NDArray[Any] = np.ascontiguousarray(planes.T).view(kind).reshape(count)
    return array
