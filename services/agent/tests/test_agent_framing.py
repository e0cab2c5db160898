"""Frames between agents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_agent import framing
from skyloom_common.core.errors import RemoteError

frames = st.lists(
    st.tuples(st.sampled_from([framing.DATA, framing.STATE, framing.ALIVE]), st.binary(max_size=50))
)


@given(frames, st.lists(st.integers(1, 20), min_size=1))
def test_frames_survive_any_cut(sent, cuts):
    data = b"".join(framing.encode(kind, payload) for kind, payload in sent)
    decoder = framing.Decoder()
    got = []
    at = 0
    for turn in range(len(data)):
        step = cuts[turn % len(cuts)]
        got += list(decoder.feed(data[at : at + step]))
        at += step
    assert got == sent


@pytest.mark.parametrize("data", [b"X\0\0\0\1x", b"D\xff\xff\xff\xff"])
def test_nonsense_is_refused(data):
    with pytest.raises(RemoteError):
        list(framing.Decoder().feed(data))
