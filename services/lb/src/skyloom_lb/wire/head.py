"""What request and response heads have in common: raw lines, of which only some mean anything to a proxy.

llhttp says whether the bytes are a head at all; then each line is exactly one header. Nearly all lines come again with the next
message (user agents, content types, hosts), so what a line means is remembered, up to a bound; lines with secrets are not.
"""

from __future__ import annotations

from skyloom_lb.wire.headers import MAX_HEADERS, BadMessage

_MOST_LINES = 4096
_LONGEST_LINE = 128
_SECRET = (b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"api-key")
_FOLDED = (b"", b" ", b"\t")

Seen = dict[bytes, tuple[bytes, ...]]
"""What `look_at` said of a line."""


class Head:
    """`block` is the raw header block from the CR LF after the first line to that of the last header; `drop` names lines in it
    that must not go on, as they were written; `named` are the lower-case names that `Connection` lists."""

    block: bytes = b""
    drop: tuple[bytes, ...] = ()
    named: tuple[bytes, ...] = ()
    _headers: list[tuple[bytes, bytes]] | None = None

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
