"""What a user writes to the device that is meant."""

from __future__ import annotations

import pytest

from skyloom_optimizer.snapshot import OfferSnapshot


def device(snapshot: OfferSnapshot, name: str, count: float = 1) -> tuple[set[str], float]:
    found = snapshot.names.find(name, count)
    assert found is not None
    return {snapshot.accelerators[number].name for number in found.devices}, found.count


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a100", "A100"),
        ("A100-40GB", "A100"),
        ("a100-80gb", "A100-80GB"),
        ("A100-SXM4-80GB", "A100-80GB"),
        ("h100-80gb", "H100"),
        ("RTX 4090", "RTX4090"),
        ("rtx_a6000", "RTXA6000"),
        ("Tesla T4", "T4"),
        ("trn1", "Trainium"),
        ("gaudi", "Gaudi HL-205"),
        ("v100-16gb", "V100"),
        ("tpu-v5e-8", "tpu-v5litepod-8"),
        ("TPU-V5litepod-8", "tpu-v5litepod-8"),
        ("tpu-v3-8", "tpu-v3-8"),
        ("H100-SXM", "H100-SXM"),
    ],
)
def test_names(snapshot: OfferSnapshot, written: str, meant: str) -> None:
    assert device(snapshot, written) == ({meant}, 1)


def test_a_number_of_tpu_chips_is_one_slice(snapshot: OfferSnapshot) -> None:
    assert device(snapshot, "tpu-v6e", 8) == ({"tpu-v6e-8"}, 1)
    assert device(snapshot, "tpu-v5e", 16) == ({"tpu-v5litepod-16"}, 1)


def test_kubernetes_tpu_names_are_known_but_sold_by_no_cloud(snapshot: OfferSnapshot) -> None:
    assert device(snapshot, "tpu-v5-lite-podslice", 4) == (set(), 4)


def test_unknown_names_have_a_nearest(snapshot: OfferSnapshot) -> None:
    assert snapshot.names.find("A1000", 1) is None
    assert snapshot.names.nearest("A1000") == "A100"
    assert snapshot.names.find("tpu-v99-8", 1) is None
