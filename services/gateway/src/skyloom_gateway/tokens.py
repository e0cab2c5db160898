"""Users' tokens: the local stack's one token file, and the file of token hashes of a deployment.

A token is never stored by a deployment, only its SHA-256; it must not be logged or put into an error.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from skyloom_common.service.auth import Caller, Headers, UserTokenAuth
from skyloom_common.service.env import SettingsError

_log = logging.getLogger(__name__)
_HASH = re.compile(r"[0-9a-f]{64}")
_LOOK_EVERY = 1.0
_FORM = '{"<sha256 of the token, 64 hex digits>": "<user name>", ...}'


def new_token() -> str:
    return "sky_" + secrets.token_urlsafe(32)


def ensure_token(path: Path) -> str:
    """The token in `path`, made with mode 0600 when there is none. Two that start at once get the same one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _create(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)
    token = path.read_text().strip()
    if not token:
        raise SettingsError([f"{path} is empty; remove it and start again: a new token is made then"])
    return token


def _create(path: Path) -> None:
    """Written aside and linked into place: nobody ever reads half a token, nobody overwrites one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(new_token() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    except FileExistsError:
        return
    finally:
        aside.unlink()


def local_auth(home: Path) -> UserTokenAuth:
    """Whoever can read the token file of this machine's stack is its owner."""
    path = home / "token"
    hint = f"The local server's token is in {path}; the sky command reads it by itself."
    return UserTokenAuth.single(ensure_token(path), _user(), hint=hint)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


class FileTokens:
    """Authenticates by a file of token hashes; a changed file counts within a second, a broken one changes nothing."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._auth, self._stamp = self._read()
        self._looked_at = clock()

    def authenticate(self, headers: Headers) -> Caller:
        now = self._clock()
        if now - self._looked_at >= _LOOK_EVERY:
            self._looked_at = now
            self._refresh()
        return self._auth.authenticate(headers)

    def _refresh(self) -> None:
        try:
            if _stamp(self._path) != self._stamp:
                self._auth, self._stamp = self._read()
                _log.info("%s was read again", self._path)
        except (OSError, SettingsError) as error:
            _log.error("the tokens that were valid before stay valid: %s", error)

    def _read(self) -> tuple[UserTokenAuth, tuple[int, int, int]]:
        try:
            stamp = _stamp(self._path)
            users = json.loads(self._path.read_text())
        except OSError as error:
            raise SettingsError(
                [f"SKYLOOM_TOKENS_FILE: {self._path} cannot be read: {error.strerror}"]
            ) from error
        except ValueError as error:
            raise SettingsError([f"SKYLOOM_TOKENS_FILE: {self._path} is not JSON; write {_FORM}"]) from error
        if not isinstance(users, dict) or not users or not all(_is_entry(*item) for item in users.items()):
            raise SettingsError([f"SKYLOOM_TOKENS_FILE: {self._path} has another form; write {_FORM}"])
        return UserTokenAuth(users, hint="Ask for a token, then type: sky api login -e URL -t TOKEN"), stamp


def _is_entry(digest: object, user: object) -> bool:
    return isinstance(digest, str) and bool(_HASH.fullmatch(digest)) and isinstance(user, str) and bool(user)


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
