"""From settings to a connected Gateway. The only place where the client decides which server it talks to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sky import settings
from sky.api import Gateway
from sky.net.transport import Transport
from sky.settings import ServerAddress

Starting = Callable[[Callable[[], ServerAddress]], ServerAddress]


def find_server(overrides: Sequence[str] = ()) -> ServerAddress | None:
    """The server in use, without starting anything; None = the local stack, which does not run."""
    named = settings.configured_server(overrides)
    if named is not None:
        return named
    from sky import stack

    return stack.running()


def connect(overrides: Sequence[str] = (), *, starting: Starting | None = None) -> Gateway:
    """A Gateway to the configured server, else to the local stack, started when it does not run.

    `starting` wraps the start (a spinner, say).
    """
    server = settings.configured_server(overrides)
    if server is None:
        from sky import stack

        server = stack.running()
        if server is None:
            stack.require_autostart()
            server = starting(stack.ensure_started) if starting else stack.ensure_started()
    return gateway_to(server)


def gateway_to(server: ServerAddress) -> Gateway:
    def locate() -> tuple[str, str | None]:
        from sky import stack

        found = stack.address() or server
        return found.endpoint, found.token

    try:
        return Gateway(Transport(server.endpoint, server.token, locate=locate if server.local else None))
    except ValueError as error:
        from sky.exceptions import ClientError

        raise ClientError(str(error), hint=f"it comes from: {server.source}") from error
