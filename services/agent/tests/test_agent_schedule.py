"""The queue's decision: a table, and what must hold for any cluster and queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_agent.model import Place
from skyloom_agent.schedule import (
    NodeCapacity,
    RunningJob,
    Schedule,
    Snapshot,
    Start,
    WaitingJob,
    behind_others,
    schedule,
)
from skyloom_common.contracts.jobs import JobDemand

TWO = (NodeCapacity(0, 4, 16, 2), NodeCapacity(1, 4, 16, 2))


def decide(waiting, running=(), nodes=TWO, size=None) -> Schedule:
    return schedule(Snapshot(tuple(nodes), size or len(nodes), tuple(running), tuple(waiting)))


def job(job_id: int, num_nodes: int = 1, **demand: float) -> WaitingJob:
    return WaitingJob(job_id, JobDemand(**demand), num_nodes)


def running(job_id: int, *places: Place, **demand: float) -> RunningJob:
    return RunningJob(job_id, JobDemand(**demand), places)


@pytest.mark.parametrize(
    ("waiting", "busy", "starts"),
    [
        pytest.param([job(1)], [], {1: (Place(0),)}, id="lowest node first"),
        pytest.param([job(1, 2)], [], {1: (Place(0), Place(1))}, id="ranks on different nodes"),
        pytest.param(
            [job(1, cpus=3), job(2, cpus=3)],
            [],
            {1: (Place(0),), 2: (Place(1),)},
            id="a full node is passed over",
        ),
        pytest.param(
            [job(2, 2, cpus=4), job(3, cpus=1)],
            [running(1, Place(0), cpus=1)],
            {},
            id="the head of the queue blocks",
        ),
        pytest.param(
            [job(2, gpus=0.5)],
            [running(1, Place(0, (1,)), gpus=0.5)],
            {2: (Place(0, (1,)),)},
            id="fractions share a GPU",
        ),
        pytest.param(
            [job(2, gpus=0.6)],
            [running(1, Place(0, (0,)), gpus=0.5)],
            {2: (Place(0, (1,)),)},
            id="but never more than it",
        ),
        pytest.param(
            [job(2, gpus=2)],
            [running(1, Place(0, (0,)), gpus=0.1)],
            {2: (Place(1, (0, 1)),)},
            id="whole GPUs are untouched",
        ),
        pytest.param(
            [job(1, memory_gib=17), job(2)], [], {2: (Place(0),)}, id="what never fits blocks nobody"
        ),
        pytest.param(
            [job(1, cpus=0.1)] * 1, [running(9, Place(0), cpus=3.9)], {1: (Place(0),)}, id="fractions add up"
        ),
    ],
)
def test_what_starts_where(waiting, busy, starts):
    assert {start.job_id: start.places for start in decide(waiting, busy).starts} == starts


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        (job(1, 3), "num_nodes: the job needs 3 nodes and the cluster has 2"),
        (job(1, gpus=1.5), "accelerators: 1.5 GPUs cannot be given; above one the count must be whole"),
        (
            job(1, 2, cpus=5, gpus=1),
            (
                "the job needs 5 CPUs, 1 GPU on 2 nodes and 0 nodes of the cluster have that; "
                "the biggest has 4 CPUs, 16 GiB of memory, 2 GPUs"
            ),
        ),
    ],
)
def test_what_never_fits_is_told_so(waiting, reason):
    assert decide([waiting]).never == ((1, reason),)


def test_why_a_job_waits():
    busy = [running(3, Place(0), cpus=4)]
    one = (NodeCapacity(0, 4, 16, 0),)
    assert decide([job(4, cpus=1)], busy, one).waits == ((4, "waiting for 1 CPU on node 0; job 3 runs"),)
    assert decide([job(4, 2, cpus=1)], busy).waits == ((4, "waiting for 1 CPU on node 0; job 3 runs"),)
    assert decide([job(4)], [], [], 1).waits == ((4, "waiting for node 0 to answer"),)
    assert decide([job(4, 2)], [], TWO[:1], 2).waits == ((4, "waiting for node 1 to answer"),)
    behind = decide([job(4, cpus=1), job(5)], busy, one).waits[1]
    assert behind == (5, "waiting for its turn; jobs start in the order they came")


def test_a_node_that_is_not_known_yet_may_still_be_big_enough():
    assert decide([job(1, gpus=8)], [], TWO[:1], 2).never == ()
    assert decide([job(1, gpus=8)], [], TWO, 2).never != ()


demands = st.builds(
    JobDemand,
    cpus=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 5.0]),
    memory_gib=st.sampled_from([0.0, 1.0, 7.5]),
    gpus=st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0, 1.5, 2.0, 4.0]),
)
clusters = st.lists(
    st.tuples(st.sampled_from([0.5, 2.0, 8.0]), st.sampled_from([4.0, 32.0]), st.integers(0, 4)),
    min_size=1,
    max_size=4,
).map(lambda rows: tuple(NodeCapacity(rank, *row) for rank, row in enumerate(rows)))
queues = st.lists(st.tuples(demands, st.integers(1, 5)), max_size=12).map(
    lambda rows: tuple(WaitingJob(number, *row) for number, row in enumerate(rows, start=1))
)


@given(clusters, queues)
def test_no_node_is_ever_overbooked_and_the_order_holds(nodes, queue):
    """Starts as many as fit, lets them run, and starts again until nothing more happens."""
    decision = decide(queue, (), nodes)
    by_id = {waiting.job_id: waiting for waiting in queue}
    used = {node.rank: [0.0, 0.0, [0.0] * node.gpus] for node in nodes}
    for start in decision.starts:
        waiting = by_id[start.job_id]
        assert len({place.node for place in start.places}) == len(start.places) == waiting.num_nodes
        for place in start.places:
            account = used[place.node]
            account[0] += waiting.demand.cpus
            account[1] += waiting.demand.memory_gib
            gpus = waiting.demand.gpus
            assert len(set(place.gpus)) == len(place.gpus) == (0 if gpus == 0 else 1 if gpus < 1 else gpus)
            for index in place.gpus:
                account[2][index] += min(gpus, 1.0)
    for node in nodes:
        cpus, memory, gpus = used[node.rank]
        assert cpus <= node.cpus + 1e-6 and memory <= node.memory_gib + 1e-6
        assert all(share <= 1 + 1e-6 for share in gpus)
    started = [start.job_id for start in decision.starts]
    waiting_ids = [job_id for job_id, _ in decision.waits]
    assert started == sorted(started) and (not started or not waiting_ids or max(started) < min(waiting_ids))
    answered = sorted(started + waiting_ids + [job_id for job_id, _ in decision.never])
    assert answered == [waiting.job_id for waiting in queue], "every job gets exactly one answer"


@given(clusters, queues)
def test_the_first_of_an_idle_cluster_starts_or_never_will(nodes, queue):
    """No job waits for ever: with nothing running, the head of the queue starts unless it was told that it never fits."""
    decision = decide(queue, (), nodes)
    never = {job_id for job_id, _ in decision.never}
    left = [waiting for waiting in queue if waiting.job_id not in never]
    if left:
        assert isinstance(decision.starts[0], Start) and decision.starts[0].job_id == left[0].job_id


@given(clusters, queues, demands, st.integers(1, 5))
def test_behind_a_job_that_waits_a_new_one_is_judged_without_the_queue(nodes, queue, demand, num_nodes):
    new = WaitingJob(100, demand, num_nodes)
    if not decide(queue, (), nodes).waits:
        return
    whole = decide((*queue, new), (), nodes)
    alone = behind_others(new, Snapshot(nodes, len(nodes), (), ()))
    assert not alone.starts
    assert [told for told in whole.waits if told[0] == 100] == list(alone.waits)
    assert [told for told in whole.never if told[0] == 100] == list(alone.never)
