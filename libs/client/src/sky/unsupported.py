"""What the SDK names already and a later version will do: each call says so in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def later(name: str) -> Callable[..., NoReturn]:
    """A function that raises NotSupportedError("not supported yet: NAME")."""

    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        from sky.exceptions import NotSupportedError

        raise NotSupportedError(f"not supported yet: {name}")

    refuse.__name__ = refuse.__qualname__ = name.rpartition(".")[2]
    refuse.__doc__ = f"Not supported yet: {name}."
    return refuse


def later_async(name: str) -> Callable[..., Any]:
    """The same as a coroutine."""
    refuse = later(name)

    async def wait(*args: Any, **kwargs: Any) -> Any:
        return refuse(*args, **kwargs)

    wait.__name__ = wait.__qualname__ = refuse.__name__
    wait.__doc__ = refuse.__doc__
    return wait
