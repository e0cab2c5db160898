"""What request and response heads have in common: raw lines, of which only some mean anything to a proxy.

llhttp says whether the bytes are a head at all; then each line is exactly one header. Nearly all lines come again with the next
message (user agents, content types, hosts), so what a line means is remembered, up to a bound; lines with secrets are not.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from skyloom_lb.wire.headers import MAX_HEADERS, BadMessage, content_length, without, without_any

_MOST_LINES = 4096
_LONGEST_LINE = 128
_SECRET = (b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"api-key")
_FOLDED = (b"", b" ", b"\t")

Seen = dict[bytes, tuple[bytes, ...]]
"""What `look_at` said of a line."""


class Head:
    """`block` is the raw header block from the CR LF after the first line to that of the last header; `drop` names lines in it
    that must not go on, as they were written; `named` are the lower-case names that `Connection` lists. `length_name` is how
    `Content-Length` was written where that is the length of the body."""

    __slots__ = ("_headers", "_onward", "block", "drop", "length", "length_name", "named")

    def __init__(self) -> None:
        self.block = b""
        self.drop: tuple[bytes, ...] = ()
        self.named: tuple[bytes, ...] = ()
        self.length: int | None = None
        self.length_name = b""
        self._headers: list[tuple[bytes, bytes]] | None = None
        self._onward: dict[tuple[bytes, ...], bytes] = {}

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Lower-case names and stripped values, made when somebody asks for them."""
        if self._headers is None:
            parts = (line.partition(b":") for line in self.block.split(b"\r\n")[1:-1])
            self._headers = [(name.lower(), value.strip(b" \t")) for name, _, value in parts]
        return self._headers

    def get(self, name: bytes, default: bytes = b"") -> bytes:
        """The first value of a header; `name` in lower case."""
        for one, value in self.headers:
            if one == name:
                return value
        return default

    def onward(self, drop: tuple[bytes, ...]) -> bytes:
        """The block without what ends here, `drop` (lower-case names) and the body's length, which is written anew."""
        block = self._onward.get(drop)
        if block is None:
            block = without(self.block, (*self.drop, self.length_name) if self.length_name else self.drop)
            block = self._onward[drop] = without_any(block, drop) if drop else block
        return block

    def note(self, lower: bytes, name: bytes, value: bytes) -> None:
        """Keeps the facts of one header that matters to a proxy. Raises BadMessage for what has no safe reading."""
        raise NotImplementedError

    def read_lines(self, handled: frozenset[bytes], seen: Seen) -> None:
        """Notes every header whose name is in `handled`.

        Refused is what parsers are known to disagree about: bare line ends, folded lines, NUL, too many headers.
        """
        lines = self.block.split(b"\r\n")
        if len(lines) > MAX_HEADERS + 2:
            raise BadMessage(f"there are more than {MAX_HEADERS} headers")
        del lines[0], lines[-1]
        for line in lines:
            found = seen.get(line)
            if found is None:
                found = look_at(line, handled, seen)
            if found:
                self.note(*found)


def look_at(line: bytes, handled: frozenset[bytes], seen: Seen) -> tuple[bytes, ...]:
    """Lower-case name, name as written and value of a line that is handled; nothing for any other sound one."""
    if b"\n" in line or b"\r" in line or b"\0" in line or line[:1] in _FOLDED:
        raise BadMessage("a header line is folded, holds NUL or does not end with CR LF")
    name, colon, value = line.partition(b":")
    lower = name.lower()
    if not colon:
        raise BadMessage("a header line has no colon")
    found = (lower, name, value.strip(b" \t")) if lower in handled else ()
    if len(line) <= _LONGEST_LINE and lower not in _SECRET:
        if len(seen) >= _MOST_LINES:
            seen.clear()
        seen[line] = found
    return found


H = TypeVar("H", bound=Head)


class Memory(Generic[H]):
    """The last head of one peer. The next one mostly is the same but for the length of its body: then it was read already.

    Sound because that head was read whole, with one length at most: around the digits every byte must be what it was.
    Heads that are remembered are shared by all messages that have them; nobody may change one.
    """

    __slots__ = ("_after", "_before", "_head", "_raw")

    def __init__(self) -> None:
        self._head: H | None = None
        self._raw = self._before = self._after = b""

    def keep(self, raw: bytes, head: H) -> None:
        """`raw` is what `head` was read from."""
        at, end = len(raw), len(raw)
        if head.length_name:
            name = b"\r\n%b:" % head.length_name
            at = raw.index(name) + len(name)
            end = raw.index(b"\r\n", at)
        self._head = head
        self._raw, self._before, self._after = raw, raw[:at], raw[end:]

    def recall(self, raw: bytes) -> tuple[H, int | None] | None:
        """The head that `raw` is, if only its length is new; and that length, which the head itself does not know."""
        known = self._head
        if known is None:
            return None
        if raw == self._raw:
            return known, known.length
        before, after = self._before, self._after
        if not known.length_name or not raw.startswith(before) or not raw.endswith(after):
            return None
        digits = raw[len(before) : len(raw) - len(after)].strip(b" \t")
        return (known, content_length(digits)) if digits.isdigit() else None
