"""API keys: who a secret belongs to, what it may do, how much. The file holds hashes only; secrets are never kept or logged.

`python -m skyloom_lb.admission.keys NAME` makes a new key: it prints the secret once and the entry for the file.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.admission.config import Limits, from_wire_unseen, not_negative, shown

SCOPES = ("chat", "completions", "embeddings", "responses", "models", "other")
_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")
_MAX_PATTERNS = 4096
_NO_MARK = (0, 0, 0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyEntry:
    """One entry of the file. `models`: names or patterns (`llama-*`), empty = all; `scopes` empty = all."""

    name: str
    sha256: str
    models: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    priority: int = 0
    limits: Limits | None = None
    expires: str = ""
    disabled: bool = False


@dataclass(frozen=True)
class KeyFile:
    keys: tuple[KeyEntry, ...] = field(default_factory=tuple)


class Key:
    """An entry ready for use. Equal names across reloads are the same key: its counts go on."""

    __slots__ = (
        "_patterns",
        "_seen",
        "digest",
        "ends_at",
        "limits",
        "models",
        "name",
        "names",
        "priority",
        "scopes",
        "strict",
    )

    def __init__(self, entry: KeyEntry, default_limits: Limits) -> None:
        self.name = entry.name
        self.digest = bytes.fromhex(_digest_of(entry))
        self.models = frozenset(entry.models)
        self._patterns = tuple(one for one in entry.models if any(sign in one for sign in "*?["))
        self.names = tuple(sorted(self.models - set(self._patterns)))
        """The models that are no patterns."""
        self._seen: dict[str, bool] = {}
        self.scopes = frozenset(entry.scopes)
        self.priority = entry.priority
        self.limits = default_limits if entry.limits is None else entry.limits
        self.strict = bool(self.models or self.limits.tokens_per_minute)
        """Something depends on what the bodies of its requests say."""
        self.ends_at = _seconds(entry) if entry.expires else 0.0

    def may_use(self, model: str) -> bool:
        if not self.models or model in self.models:
            return True
        if not self._patterns:
            return False
        known = self._seen.get(model)
        if known is None:
            known = any(fnmatchcase(model, one) for one in self._patterns)
            if len(self._seen) < _MAX_PATTERNS:
                self._seen[model] = known
        return known

    def may_do(self, scope: str) -> bool:
        return not self.scopes or scope in self.scopes


def _digest_of(entry: KeyEntry) -> str:
    found = _HASH.match(entry.sha256.lower())
    if found is None:
        raise InvalidRequest(
            f"keys: {entry.name}: sha256 is not 64 hexadecimal digits (the hash, never the key itself)"
        )
    return found[1]


def _seconds(entry: KeyEntry) -> float:
    try:
        when = dt.datetime.fromisoformat(entry.expires)
    except ValueError:
        raise InvalidRequest(
            f"keys: {entry.name}: expires: {shown(entry.expires)} is not a time as in 2027-01-31T00:00:00+00:00"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp()


def parse_keys(data: Any, default_limits: Limits) -> dict[bytes, Key]:
    """Enabled keys by the SHA-256 of their secret."""
    file = from_wire_unseen(KeyFile, data or {}, path="keys file")
    found: dict[bytes, Key] = {}
    names = set()
    for entry in file.keys:
        if entry.name in names or not entry.name:
            raise InvalidRequest(f"keys: the name {entry.name!r} is empty or there twice")
        names.add(entry.name)
        wrong = sorted(set(entry.scopes) - set(SCOPES))
        if wrong:
            raise InvalidRequest(
                f"keys: {entry.name}: scopes: {shown(wrong[0])} is not one of {', '.join(SCOPES)}"
            )
        if entry.limits is not None:
            not_negative(entry.limits, f"keys: {entry.name}: limits")
        key = Key(entry, default_limits)
        if not entry.disabled:
            found[key.digest] = key
    return found


def read_keys(path: str, default_limits: Limits) -> dict[bytes, Key]:
    return keys_in(_text_of(path), path, default_limits)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"keys file {path}: cannot be read: {words}") from None


def keys_in(text: str, path: str, default_limits: Limits) -> dict[bytes, Key]:
    """`path`: for messages. None of them shows the text: somebody may have put a secret there by mistake."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidRequest(f"keys file {path}: cannot be read: it is not YAML") from None
    if data is not None and not isinstance(data, dict):
        raise InvalidRequest(f"keys file {path}: a mapping with `keys:` is wanted")
    return parse_keys(_texts(data), default_limits)


def _texts(data: Any) -> Any:
    """YAML makes a time of `expires` and numbers of some hashes' look-alikes."""
    for entry in (data or {}).get("keys") or ():
        if isinstance(entry, dict) and isinstance(entry.get("expires"), dt.date):
            entry["expires"] = entry["expires"].isoformat()
    return data


class KeyStore:
    """The keys in force. A file that becomes wrong or goes away changes nothing, and is told.

    `known`: what was in the file when it was right, for one who comes while it is not.
    """

    def __init__(
        self,
        path: str,
        default_limits: Limits,
        clock: Callable[[], float] = time.time,
        known: str | None = None,
    ) -> None:
        self.path = path
        self.trouble = ""
        self._clock = clock
        self._limits = default_limits
        self._mark = self._look()
        try:
            self._read()
        except InvalidRequest as error:
            if known is None:
                raise
            _log.error("the keys are those known last: %s", error.message)
            self.trouble, self._mark = error.message, _NO_MARK
            self._use(known)

    def _read(self) -> None:
        self._use(_text_of(self.path))

    def _use(self, text: str) -> None:
        self.by_digest = keys_in(text, self.path, self._limits)
        self.text = text

    def same(self, path: str, default_limits: Limits) -> bool:
        return (path, default_limits) == (self.path, self._limits)

    def _look(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self.path)
        except OSError:
            return _NO_MARK
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def poll(self) -> bool:
        """Reads again when the file is another; True when the keys are new."""
        mark = self._look()
        if mark == self._mark:
            return False
        try:
            self._read()
        except InvalidRequest as error:
            if self.trouble != error.message:
                _log.error("the keys stay what they were: %s", error.message)
            self.trouble = error.message
            return False
        self._mark, self.trouble = mark, ""
        _log.info("%d keys read again", len(self.by_digest))
        return True

    def find(self, secret: bytes) -> Key | None:
        """Looked up by hash: what a comparison could leak about a hash says nothing about the secret."""
        digest = hashlib.sha256(secret).digest()
        key = self.by_digest.get(digest)
        if key is None:
            return None
        return key if not key.ends_at or self._clock() < key.ends_at else None


def new_secret() -> str:
    return "sky-" + secrets.token_urlsafe(36)


def _main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m skyloom_lb.admission.keys NAME", file=sys.stderr)  # noqa: T201
        return 2
    secret = new_secret()
    print(f"secret, shown only now: {secret}", file=sys.stderr)  # noqa: T201
    entry = {"name": arguments[0], "sha256": hashlib.sha256(secret.encode()).hexdigest()}
    print(yaml.safe_dump({"keys": [entry]}, sort_keys=False), end="")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
