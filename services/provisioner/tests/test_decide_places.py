"""Where a mount may go, from its words alone."""

from __future__ import annotations

import pytest

from skyloom_provisioner.decide.places import misplaced


@pytest.mark.parametrize(
    "destination", ["~/data", "data", "a/../b", "~/a/..", "~", "./x", "..data", "~/..data"]
)
def test_below_the_home_is_fine_anywhere(destination: str) -> None:
    assert misplaced(destination, confined=True) is None


@pytest.mark.parametrize("destination", ["../../x", "~/../x", "~/a/../../x", "a/../../../x"])
@pytest.mark.parametrize("confined", [True, False])
def test_climbing_out_is_refused_everywhere(destination: str, confined: bool) -> None:
    assert "climbs out" in (misplaced(destination, confined=confined) or "")


def test_one_level_above_the_workdir_is_still_the_home() -> None:
    assert misplaced("../x", confined=True) is None


def test_absolute_places_belong_to_machines_of_ones_own() -> None:
    assert misplaced("/data", confined=False) is None
    assert "use '~/data/set'" in (misplaced("/data/set", confined=True) or "")


@pytest.mark.parametrize("destination", ["", "a\0b"])
def test_what_is_no_path_is_refused(destination: str) -> None:
    assert "is not a path" in (misplaced(destination, confined=False) or "")
