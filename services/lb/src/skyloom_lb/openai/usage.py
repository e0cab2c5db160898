"""Token counts out of answers, whole or streamed. Pure, bounded in memory, never wrong about what it did not see."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any

import orjson

_KEPT = 256 * 1024
"""Of a long answer only the end is kept: that is where engines put the usage."""
_MOST = 1 << 40
"""Tokens. No answer has so many."""
_SHORT = 4096
"""Parsing all of an answer is quicker than searching it up to about this size."""
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


@dataclass(slots=True)
class Usage:
    prompt: int = 0
    completion: int = 0
    cached: int = 0


def usage_of(value: Any) -> Usage | None:
    """From OpenAI's two forms: prompt_/completion_tokens, and input_/output_tokens of responses; Anthropic's is like the second, but
    what it took from its cache or put there is counted beside its input."""
    if not isinstance(value, dict):
        return None
    found = value.get
    prompt = _count(found("prompt_tokens")) or _count(found("input_tokens"))
    completion = _count(found("completion_tokens")) or _count(found("output_tokens"))
    details = found("prompt_tokens_details") or found("input_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    if "cache_read_input_tokens" in value:
        cached = _count(found("cache_read_input_tokens"))
        prompt += cached + _count(found("cache_creation_input_tokens"))
    if not prompt and not completion:
        total = _count(found("total_tokens"))
        return Usage(total) if total else None
    return Usage(prompt, completion, cached)


def _count(value: Any) -> int:
    """0 for what is no number of tokens: an engine's nonsense must not become anybody's bill, nor too much for a counter."""
    return value if type(value) is int and 0 < value < _MOST else 0


def usage_in(body: bytes) -> Usage | None:
    """The last usage object in a JSON answer. A quoted `"usage"` inside a text is escaped there and does not match."""
    if len(body) <= _SHORT:
        try:
            data = orjson.loads(body)
            return usage_of(data.get("usage")) if isinstance(data, dict) else None
        except orjson.JSONDecodeError:
            pass  # only its end is here
    at = body.rfind(b'"usage"')
    while at >= 0:
        found = _USAGE.match(body, at)
        if found is not None:
            try:
                usage = usage_of(orjson.loads(found[1]))
            except orjson.JSONDecodeError:
                usage = None
            if usage is not None:
                return usage
        at = body.rfind(b'"usage"', 0, at)
    return None


class Tail:
    """The end of an answer that comes in pieces, unpacked when it is packed in a way that we know."""

    __slots__ = ("_inflate", "_known", "_parts", "_size")

    def __init__(self, encoding: bytes) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._known = encoding in (b"", b"identity", b"gzip", b"deflate")
        packed = encoding in (b"gzip", b"deflate")
        self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS) if packed else None

    def add(self, payload: bytes) -> None:
        if not self._known:
            return
        if self._inflate is not None:
            try:
                payload = self._inflate.decompress(payload, _KEPT)
            except zlib.error:
                self._known = False
                return
            if self._inflate.unconsumed_tail:  # packed suspiciously well: not worth its memory
                self._known = False
                return
        self._parts.append(payload)
        self._size += len(payload)
        if self._size > 2 * _KEPT:
            self._parts = [b"".join(self._parts)[-_KEPT:]]
            self._size = _KEPT

    def usage(self) -> Usage | None:
        return usage_in(b"".join(self._parts)) if self._parts else None
