"""An error is the same class on both ends of a wire, with the sender's words."""

from __future__ import annotations

import pytest

from skyloom_common.core import errors
from skyloom_common.core.errors import InternalError, RemoteError, SkyloomError
from skyloom_common.core.names import check_cluster_name
from skyloom_common.core.text import age, did_you_mean


def _all_classes(cls: type[SkyloomError]) -> list[type[SkyloomError]]:
    """Ours only: which of the other members' classes exist depends on what other tests have imported."""
    found = [cls, *(found for sub in cls.__subclasses__() for found in _all_classes(sub))]
    return [one for one in found if one.__module__.startswith("skyloom_common.")]


@pytest.mark.parametrize("cls", _all_classes(SkyloomError)[1:])
def test_every_class_comes_back_as_itself(cls: type[SkyloomError]) -> None:
    sent = cls("it broke", hint="try again", details={"zone": "a"})
    received = SkyloomError.from_wire(sent.to_wire())
    assert type(received) is cls
    assert (received.message, received.hint) == ("it broke", "try again")
    assert received.details["zone"] == "a"


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in _all_classes(SkyloomError)[1:]]
    assert sorted(codes) == sorted(set(codes))


def test_an_unknown_code_is_a_remote_error_that_keeps_the_word() -> None:
    received = SkyloomError.from_wire({"code": "from_the_future", "message": "no"})
    assert isinstance(received, RemoteError)
    assert received.details["code"] == "from_the_future"


def test_internal_error_is_a_server_fault() -> None:
    assert InternalError("x").http_status == 500


@pytest.mark.parametrize("name", ["a", "my-cluster-1", "A.b_c", "x" * 200])
def test_good_cluster_names(name: str) -> None:
    assert check_cluster_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "1a", "a-", "a;rm -rf", "$(x)", "a b", "../a", "a/b", "a..b", "é", "a\n", "x" * 201, "-a"]
)
def test_bad_cluster_names_are_refused_with_the_right_form(name: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="use a letter, then letters"):
        check_cluster_name(name)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (59.9, "59s"), (60, "1m"), (61, "1m 1s"), (7260, "2h 1m"), (100_000, "1d 3h")],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_suggestions() -> None:
    assert did_you_mean("resorces", ["resources", "run"]) == "; did you mean 'resources'?"
    assert did_you_mean("zzz", ["resources"]) == ""
