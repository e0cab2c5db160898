"""Tokens: the local stack's file, the file of hashes of a deployment, and what a broken one does."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyloom_common.core.errors import Unauthenticated
from skyloom_common.service.auth import token_hash
from skyloom_common.service.env import SettingsError
from skyloom_gateway.tokens import FileTokens, ensure_token, local_auth, new_token


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_local_token_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "token"
    os.umask(0)
    try:
        token = ensure_token(path)
    finally:
        os.umask(0o022)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) > 40
    assert ensure_token(path) == token
    assert [child.name for child in path.parent.iterdir()] == ["token"]


def test_a_token_that_others_can_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("mine\n")
    path.chmod(0o644)
    assert ensure_token(path) == "mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_token_file_admits_nobody(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    with pytest.raises(SettingsError, match="is empty; remove it"):
        ensure_token(tmp_path / "token")


def test_many_that_start_at_once_get_the_same_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: ensure_token(tmp_path / "token"), range(32)))
    assert len(tokens) == 1


def test_the_local_auth_tells_where_the_token_is(tmp_path: Path) -> None:
    auth = local_auth(tmp_path)
    token = (tmp_path / "token").read_text().strip()
    assert auth.authenticate(bearer(token)).user
    with pytest.raises(Unauthenticated) as caught:
        auth.authenticate([])
    assert str(tmp_path / "token") in (caught.value.hint or "")
    assert token not in str(caught.value.to_wire())


def test_a_deployments_file_maps_hashes_to_users_and_is_read_again(tmp_path: Path) -> None:
    path, ticks = tmp_path / "tokens.json", Ticks()
    alice, bob = new_token(), new_token()
    path.write_text(json.dumps({token_hash(alice): "alice"}))
    auth = FileTokens(path, ticks)
    assert auth.authenticate(bearer(alice)).user == "alice"
    path.write_text(json.dumps({token_hash(bob): "bob"}))
    ticks.now = 2.0
    assert auth.authenticate(bearer(bob)).user == "bob"
    with pytest.raises(Unauthenticated):
        auth.authenticate(bearer(alice))


@pytest.mark.parametrize(
    "broken", ["{", "[]", "{}", '{"alice": "token"}', '{"%s": ""}' % ("a" * 64), '{"%s": 1}' % ("a" * 64)]
)
def test_a_broken_file_is_refused_at_the_start_and_ignored_later(tmp_path: Path, broken: str) -> None:
    path, ticks = tmp_path / "tokens.json", Ticks()
    path.write_text(broken)
    with pytest.raises(SettingsError, match="SKYLOOM_TOKENS_FILE"):
        FileTokens(path)
    alice = new_token()
    path.write_text(json.dumps({token_hash(alice): "alice"}))
    auth = FileTokens(path, ticks)
    path.write_text(broken)
    ticks.now = 2.0
    assert auth.authenticate(bearer(alice)).user == "alice"
    path.unlink()
    ticks.now = 4.0
    assert auth.authenticate(bearer(alice)).user == "alice"


def test_a_tokens_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        FileTokens(tmp_path / "none.json")
