"""A database by its URL: SQLite embedded or PostgreSQL, with the same behaviour towards callers.

`read()` is for single statements (each sees what was committed before it); `write()` is a transaction. On SQLite
there is one writer at a time in a process, taken with BEGIN IMMEDIATE, so that no transaction fails half-way for
a lock. Faults of the server become StoreUnavailable; anything else passes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import event, text
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from skyloom_common.core.errors import Conflict, StoreUnavailable

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
_BUSY_SECONDS = 10
_AWAY = ("08", "53", "57P", "25006")
"""SQLSTATE classes: connection, resources, shut down or starting, read-only (the former primary after a failover)."""
T = TypeVar("T")


class Duplicate(Conflict):
    """A row with this key is there already."""

    code = "duplicate"


def normalize_url(url: str) -> URL:
    """The URL with the asyncio driver that we use, whichever driver was named."""
    parsed = make_url(url)
    family = parsed.drivername.split("+")[0]
    if family not in _DRIVERS:
        raise ValueError(f"DATABASE_URL: {family!r} is not supported; use sqlite:///PATH or postgresql://...")
    return parsed.set(drivername=_DRIVERS[family])


class Database:
    """Make one per service in `main`; `close()` it at the end."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.url = normalize_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._writer = _sqlite_engine(self.url, pool_size=1, immediate=True)
            self._reader = _sqlite_engine(self.url, pool_size=2, immediate=False)
        else:
            self._writer = create_async_engine(
                self.url,
                pool_size=pool_size,
                max_overflow=pool_size,
                pool_timeout=_BUSY_SECONDS,
                skip_autocommit_rollback=True,
                connect_args={"command_timeout": 30, "timeout": _BUSY_SECONDS},
            )
            event.listen(self._writer.sync_engine, "handle_error", _drop_broken)
            # Without a transaction there is nothing to roll back: one round trip less for each read.
            self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")
        self._writing = asyncio.Lock()

    @property
    def kind(self) -> str:
        return "sqlite" if self.is_sqlite else "postgresql"

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        with self._mapped():
            connection = await _connect(self._reader)
            try:
                yield _settled_connection(connection)
            finally:
                await _settled(connection.close())

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        async with self._writing if self.is_sqlite else contextlib.nullcontext():
            with self._mapped():
                connection = await _connect(self._writer)
                try:
                    async with _transaction(connection):
                        yield _settled_connection(connection)
                finally:
                    await _settled(connection.close())

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        which = f"the database {self.url.database}" if self.is_sqlite else "the database"
        try:
            yield
        except IntegrityError as error:
            raise Duplicate(f"the row exists already or refers to none: {_words(error)}") from error
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            said = "cannot be used" if self.is_sqlite else "does not answer"
            raise StoreUnavailable(f"{which} {said}: {_words(error)}", hint=_way_out(error)) from error
        except DBAPIError as error:
            if _is_damage(error):
                raise StoreUnavailable(
                    f"{which} is damaged: {_words(error)}",
                    hint="Put back a copy of it; where it is moved away a new one is made, and what it knew is lost.",
                ) from error
            if not error.connection_invalidated:
                raise
            raise StoreUnavailable(f"the database connection broke: {_words(error)}") from error
        except (ConnectionError, FileNotFoundError) as error:
            # asyncpg lets the socket's own error through while it connects.
            raise StoreUnavailable(f"the database cannot be reached: {error}") from error

    async def ping(self) -> None:
        """Raises StoreUnavailable when the database does not answer."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        for engine in (self._reader, self._writer):
            await engine.dispose()


async def _settled(work: Awaitable[T]) -> T:
    """A statement that has begun ends before a cancel takes effect: a driver's thread cannot be interrupted, and a
    connection that is dropped in the middle would keep its lock."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    task = asyncio.ensure_future(engine.connect().start())
    try:
        return await _settled(task)
    except asyncio.CancelledError:
        if task.done() and not task.cancelled() and task.exception() is None:
            await task.result().close()
        raise


@contextlib.asynccontextmanager
async def _transaction(connection: AsyncConnection) -> AsyncIterator[None]:
    transaction = connection.begin()
    try:
        await _settled(transaction.start())
        yield
    except BaseException:
        await _settled(connection.rollback())
        raise
    await _settled(transaction.commit())


class _Settled:
    """A connection whose statements settle; everything else is the connection's own."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return await _settled(self._connection.execute(*args, **kwargs))

    async def scalar(self, *args: Any, **kwargs: Any) -> Any:
        return await _settled(self._connection.scalar(*args, **kwargs))

    async def scalars(self, *args: Any, **kwargs: Any) -> Any:
        return await _settled(self._connection.scalars(*args, **kwargs))

    async def run_sync(self, *args: Any, **kwargs: Any) -> Any:
        return await _settled(self._connection.run_sync(*args, **kwargs))

    async def exec_driver_sql(self, *args: Any, **kwargs: Any) -> Any:
        return await _settled(self._connection.exec_driver_sql(*args, **kwargs))


def _settled_connection(connection: AsyncConnection) -> AsyncConnection:
    return cast(AsyncConnection, _Settled(connection))


def _way_out(error: Exception) -> str | None:
    if "disk is full" not in str(error):
        return None
    return "Free some space there. A local server keeps some in reserve: `sky api stop`, then `sky down CLUSTER`."


def _drop_broken(context: ExceptionContext) -> None:
    """A server that shuts down, starts or is full of connections, and a connection left in the middle of something by
    its death: neither is used again, and callers hear that the database is away."""
    error = context.original_exception
    if str(getattr(error, "sqlstate", None) or "").startswith(_AWAY):
        context.is_disconnect = True
    elif type(error).__name__ == "InternalClientError" or "another operation is in progress" in str(error):
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False


def _is_damage(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _words(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _write_ahead(cursor: Any) -> None:
    """The first one to open a fresh file changes its mode; SQLite does not let the others wait for that by itself."""
    ends = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                raise
        await_only(asyncio.sleep(0.01))


def _sqlite_engine(url: URL, *, pool_size: int, immediate: bool) -> AsyncEngine:
    if url.database and url.database != ":memory:":
        Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    options: dict[str, Any] = (
        {} if immediate else {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
    )
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=8 if pool_size > 1 else 0,
        pool_reset_on_return=None,  # every use ends in a commit or a rollback of its own
        **options,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours: the driver's would be deferred
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={_BUSY_SECONDS * 1000}", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        _write_ahead(cursor)
        cursor.close()

    if immediate:

        @event.listens_for(engine.sync_engine, "begin")
        def begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
