"""Databases for the tests of this member."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyloom_common.testing.databases import fresh_database, postgres_server


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Each call makes an empty database."""
    made = iter(range(1000))

    def make() -> str:
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path}/{next(made)}.db"
        return fresh_database(request.getfixturevalue("postgres_url"))

    return make


@pytest.fixture
def database_url(new_database_url: Callable[[], str]) -> str:
    return new_database_url()
