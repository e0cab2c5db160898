"""X-Forwarded-For/Proto/Host and Forwarded: who asked, how, and for which host.

What the client claims is kept only when it is a trusted proxy; everybody else could claim to be anybody.
"""

from __future__ import annotations

from skyloom_lb.wire.headers import OURS
from skyloom_lb.wire.request import RequestHead


def forwarded_lines(peer: str, tls: bool, head: RequestHead, trusted: bool) -> bytes:
    claimed: dict[bytes, list[bytes]] = {}
    if trusted:
        for name, value in head.forwarded:
            claimed.setdefault(name, []).append(value)
    address = peer.encode()
    proto = b"https" if tls else b"http"
    host = head.host or b""
    node = b'"[%b]"' % address if b":" in address else address
    element = b"for=%b;proto=%b" % (node, proto) + (b';host="%b"' % host if host else b"")
    lines = [
        b"x-forwarded-for: " + b", ".join([*claimed.get(b"x-forwarded-for", ()), address]),
        b"x-forwarded-proto: " + claimed.get(b"x-forwarded-proto", [proto])[0],
        b"forwarded: " + b", ".join([*claimed.get(b"forwarded", ()), element]),
    ]
    host = claimed.get(b"x-forwarded-host", [host])[0]
    if host:
        lines.append(b"x-forwarded-host: " + host)
    lines += [b"%b: %b" % (name, value) for name in claimed if name not in OURS for value in claimed[name]]
    return b"\r\n".join(lines) + b"\r\n"
