"""API keys from a file: what they may do, when they end, and that they are never shown."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.admission import keys as keys_module
from skyloom_lb.admission.config import Limits
from skyloom_lb.admission.keys import KeyStore, parse_keys
from skyloom_lb.openai.config import front_settings, secret_of, service_settings


def entry(secret: str, name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), **fields}


def write(path: Path, *entries: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump({"keys": list(entries)}))
    stamp = path.stat().st_mtime_ns + write.count * 1_000_000  # type: ignore[attr-defined]
    write.count += 1  # type: ignore[attr-defined]
    os.utime(path, ns=(stamp, stamp))
    return str(path)


write.count = 1  # type: ignore[attr-defined]


def test_a_key_is_found_by_its_secret_only(tmp_path: Path) -> None:
    store = KeyStore(write(tmp_path / "k", entry("s1"), entry("s2", "b")), Limits())
    found = store.find(b"s2")
    assert found is not None and found.name == "b"
    assert store.find(b"s3") is None and store.find(b"") is None
    assert store.find(hashlib.sha256(b"s1").hexdigest().encode()) is None


@pytest.mark.parametrize(
    ("models", "model", "may"),
    [
        ((), "anything", True),
        (("a", "b"), "b", True),
        (("a", "b"), "c", False),
        (("llama-*",), "llama-8b", True),
        (("llama-*",), "qwen", False),
    ],
)
def test_models(models: tuple[str, ...], model: str, may: bool) -> None:
    (key,) = parse_keys({"keys": [entry("s", models=list(models))]}, Limits()).values()
    assert key.may_use(model) is may
    assert key.may_use(model) is may


def test_a_key_ends(tmp_path: Path) -> None:
    now = [1_000.0]
    path = write(
        tmp_path / "k", entry("s", expires="1970-01-01T00:20:00+00:00"), entry("d", "b", disabled=True)
    )
    store = KeyStore(path, Limits(), clock=lambda: now[0])
    assert store.find(b"s") is not None and store.find(b"d") is None
    now[0] = 1_200.0
    assert store.find(b"s") is None


def test_limits_of_a_key_or_the_default() -> None:
    default = Limits(concurrency=7)
    found = parse_keys({"keys": [entry("s"), entry("t", "b", limits={"concurrency": 2})]}, default)
    assert sorted(one.limits.concurrency for one in found.values()) == [2, 7]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "a", "sha256": "sk-secret"}, "sha256"),
        (entry("s", scopes=["root"]), "'root'"),
        (entry("s", expires="soon"), "'soon'"),
        (entry("s", limits={"concurrency": -1}), "below 0"),
        (entry("s", colour="red"), "colour"),
        (entry("s", ""), "empty"),
    ],
)
def test_wrong_entries_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as error:
        parse_keys({"keys": [wrong]}, Limits())
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keys": ["sky-RAW"]}, r"keys file.keys\[0\]: what is there is not a KeyEntry mapping"),
        ({"keys": [{"sky-RAW": 1}]}, r"keys file.keys\[0\].…: unknown field"),
        ({"sky-RAW": []}, "unknown field"),
        ({"keys": "sky-RAW"}, "keys file.keys: what is there is not a list"),
        ({"keys": [entry("s", models="sky-RAW")]}, "models: what is there is not a list"),
        ({"keys": [entry("s", limits="sky-RAW")]}, "limits: what is there is not a Limits mapping"),
        ({"keys": [entry("s", limits={"sky-RAW": 1})]}, r"limits.…: unknown field"),
        ({"keys": [entry("s", expires="sky-RAW")]}, "expires"),
        ({"keys": [entry("s", scopes=["sky-RAW"])]}, "scopes"),
        ({"keys": [{"name": "a", "sha256": "sky-RAW"}]}, "sha256"),
        ({"keys": [{"name": "a"}]}, r"keys\[0\].sha256: missing"),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as error:
        parse_keys(wrong, Limits())
    assert "RAW" not in str(error.value) and "RAW" not in str(error.value.details)


@pytest.mark.parametrize(
    "read",
    [
        lambda: front_settings({"keys_file": ["sky-RAW"]}),
        lambda: front_settings({"models": "sky-RAW"}),
        lambda: front_settings({"sky-RAW": 1}),
        lambda: service_settings("s", {"external": "sky-RAW"}),
        lambda: service_settings("s", {"usage": "sky-RAW"}),
        lambda: service_settings("s", {"continuation": "sky-RAW"}),
        lambda: secret_of(service_settings("s", {"api_key_env": "sky-RAW"}), {}),
        lambda: secret_of(service_settings("s", {"api_key_file": "sky-RAW"}), {}),
    ],
)
def test_a_providers_key_in_the_wrong_place_is_not_shown(read: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest) as error:
        read()
    assert "RAW" not in str(error.value) and "RAW" not in str(error.value.details)


def test_the_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "k"
    store = KeyStore(write(path, entry("s1")), Limits())
    assert not store.poll()
    write(path, entry("s2"))
    assert store.poll() and store.find(b"s1") is None and store.find(b"s2") is not None
    path.write_text("keys: [sk-this-is-a-secret]")
    with caplog.at_level(logging.ERROR):
        assert not store.poll() and store.find(b"s2") is not None
    path.unlink()
    assert not store.poll() and store.find(b"s2") is not None and store.trouble
    write(path, entry("s3"))
    assert store.poll() and not store.trouble


def test_a_new_key_is_printed_once_as_a_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys_module._main(["team"]) == 0
    shown = capsys.readouterr()
    secret = shown.err.split()[-1]
    found = parse_keys(yaml.safe_load(shown.out), Limits())
    assert secret not in shown.out and hashlib.sha256(secret.encode()).digest() in found
    assert keys_module._main([]) == 2
