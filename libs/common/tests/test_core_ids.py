"""Ids sort by time and do not collide."""

from __future__ import annotations

from unittest.mock import patch

from skyloom_common.core.ids import new_id


def test_ids_sort_by_time() -> None:
    with patch("time.time", side_effect=[1_000.0, 1_000.002, 2_000.0]):
        ids = [new_id() for _ in range(3)]
    assert ids == sorted(ids)
    assert all(len(one) == 26 for one in ids)


def test_ids_of_one_moment_differ() -> None:
    with patch("time.time", return_value=1_000.0):
        assert len({new_id() for _ in range(1_000)}) == 1_000
