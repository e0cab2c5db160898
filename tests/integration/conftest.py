"""Fixtures of the tests that drive a whole stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyloom_testing_stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that is not started yet, in a home of its own; everything of it is ended afterwards."""
    yield from _stack(tmp_path)


@pytest.fixture(scope="module")
def stack_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack shared by the tests of one file: for requests that must change nothing."""
    for made in _stack(tmp_path_factory.mktemp("up")):
        made.sky("api", "start")
        yield made


def _stack(folder: Path) -> Iterator[Stack]:
    work = folder / "w"
    work.mkdir()
    made = Stack(folder / "h", work)
    yield made
    made.close()
