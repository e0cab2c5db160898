"""Properties that hold for every world: compared with a search that looks at each offer by itself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom_common.contracts.plan import Offer
from skyloom_common.contracts.task.model import Quantity, ResourcesSpec
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import snapshot_of
from skyloom_optimizer.testing import gpu, request

CLOUDS, REGIONS, DEVICES = ("aqua", "gcp", "plum"), ("r1", "r2", "r3"), (None, "A100", "T4")

offers = st.lists(
    st.builds(
        Offer,
        cloud=st.sampled_from(CLOUDS),
        instance_type=st.sampled_from(["a", "b", "c", "d"]),
        region=st.sampled_from(REGIONS),
        zone=st.sampled_from(["", "z1", "z2"]),
        vcpus=st.sampled_from([None, 2.0, 4.0, 8.0, 16.0]),
        memory_gib=st.sampled_from([None, 8.0, 32.0, 64.0]),
        accelerator=st.sampled_from(DEVICES),
        accelerator_count=st.sampled_from([1.0, 2.0, 8.0]),
        use_spot=st.booleans(),
        price_per_hour=st.one_of(st.none(), st.integers(1, 60).map(lambda cents: cents / 10)),
        arch=st.sampled_from(["x86_64", "arm64", ""]),
    ).map(lambda o: o if o.accelerator else Offer(**{**vars(o), "accelerator_count": 0.0})),
    min_size=1,
    max_size=25,
    unique_by=lambda o: (o.cloud, o.instance_type, o.region, o.zone, o.use_spot),
)
quantities = st.builds(Quantity, value=st.sampled_from([2.0, 4.0, 8.0]), at_least=st.booleans())
resources = st.builds(
    ResourcesSpec,
    cloud=st.one_of(st.none(), st.sampled_from(CLOUDS)),
    cpus=st.one_of(st.none(), quantities),
    memory=st.one_of(st.none(), quantities, st.just(Quantity(4.0, at_least=True, per_cpu=True))),
    accelerators=st.sampled_from([(), (gpu("A100", 1),), (gpu("A100", 8), gpu("T4", 2))]),
    use_spot=st.one_of(st.none(), st.booleans()),
    max_hourly_cost=st.one_of(st.none(), st.sampled_from([0.5, 3.0])),
)
enabled = st.one_of(st.none(), st.sets(st.sampled_from(CLOUDS)).map(lambda names: tuple(sorted(names))))


def fits(offer: Offer, spec: ResourcesSpec, known: set[str]) -> bool:
    """The meaning of a request, in the plainest words."""
    asked = [item for item in spec.accelerators if item.name in known]
    sized = bool(spec.cpus or spec.memory or spec.accelerators)
    cpus = spec.cpus if sized else Quantity(8.0, at_least=True)
    memory = spec.memory if sized else Quantity(4.0, at_least=True, per_cpu=True)
    if spec.cloud not in (None, offer.cloud) or offer.use_spot != bool(spec.use_spot):
        return False
    if asked:
        if not any((offer.accelerator, offer.accelerator_count) == (item.name, item.count) for item in asked):
            return False
    elif offer.accelerator or offer.arch == "arm64":
        return False
    price = offer.price_per_hour
    if spec.max_hourly_cost is not None and (price is None or price > spec.max_hourly_cost):
        return False
    return holds(cpus, offer.vcpus, offer.vcpus) and holds(memory, offer.memory_gib, offer.vcpus)


def holds(wanted: Quantity | None, have: float | None, vcpus: float | None) -> bool:
    if wanted is None:
        return True
    if have is None or (wanted.per_cpu and vcpus is None):
        return False
    value = wanted.value * (vcpus or 0) if wanted.per_cpu else wanted.value
    return have >= value if wanted.at_least else have == value


@settings(max_examples=400, deadline=None)
@given(offers, resources, enabled)
def test_the_first_candidate_is_the_cheapest_that_fits(
    world: list[Offer], spec: ResourcesSpec, names: tuple[str, ...] | None
) -> None:
    known = {offer.accelerator for offer in world if offer.accelerator}
    if spec.accelerators and not known & {item.name for item in spec.accelerators}:
        return
    if spec.cloud is not None and spec.cloud not in {offer.cloud for offer in world}:
        return
    answer = plan(request(spec, enabled=names), snapshot_of(world))
    good = [o for o in world if fits(o, spec, known) and (names is None or o.cloud in names)]
    assert bool(answer.candidates) == bool(good)
    prices = [o.price_per_hour for o in good if o.price_per_hour is not None]
    if good:
        assert answer.candidates[0].offer.price_per_hour == (min(prices) if prices else None)
    else:
        assert answer.hints
    check_candidates(answer.candidates, good)


def check_candidates(candidates: object, good: list[Offer]) -> None:
    """Nothing is invented, nothing comes twice, known prices ascend and stand before unknown ones."""
    assert isinstance(candidates, tuple)
    shown = [candidate.offer for candidate in candidates]
    for offer in shown:
        assert any(same_place(offer, other) for other in good)
    assert len(
        {(o.cloud, o.instance_type, o.region, o.zone, o.vcpus, o.memory_gib, o.accelerator) for o in shown}
    ) == len(shown)
    order = [(o.price_per_hour is None, o.price_per_hour or 0.0) for o in shown]
    assert order == sorted(order)
    assert {o.cloud for o in shown} == {o.cloud for o in good}


def same_place(shown: Offer, other: Offer) -> bool:
    same = all(
        getattr(shown, name) == getattr(other, name)
        for name in ("cloud", "instance_type", "region", "price_per_hour", "vcpus", "memory_gib", "use_spot")
    )
    return same and shown.zone in ("", other.zone)
