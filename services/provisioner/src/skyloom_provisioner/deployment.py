"""Everything that is derived from the one deployment secret: our id on what we own, agent tokens, secrets at rest.

The secret itself is never stored in a table, sent anywhere or shown.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyloom_common.core import wire
from skyloom_common.core.errors import InvalidRequest

SECRET_CHARACTERS = 16


class Deployment:
    def __init__(self, secret: str) -> None:
        if len(secret) < SECRET_CHARACTERS:
            raise ValueError(f"the deployment secret needs at least {SECRET_CHARACTERS} characters")
        self._secret = secret.encode()
        self.id = self._derive("deployment").hex()[:16]

    def agent_token(self, cluster_id: str) -> str:
        """All agents of a cluster share it: the head speaks to its peers with it."""
        return self._derive(f"agent:{cluster_id}").hex()

    def fingerprint(self, value: Any) -> str:
        """Says whether two requests are equal, and nothing else about them."""
        return hmac.new(self._derive("fingerprint"), wire.dumps(value), hashlib.sha256).hexdigest()

    def seal(self, values: Mapping[str, Any]) -> str:
        return self._fernet().encrypt(json.dumps(dict(values)).encode()).decode()

    def open(self, sealed: str) -> dict[str, Any]:
        opened: dict[str, Any] = json.loads(self._fernet().decrypt(sealed.encode()))
        return opened

    def _derive(self, purpose: str) -> bytes:
        return hmac.new(self._secret, purpose.encode(), hashlib.sha256).digest()

    def _fernet(self) -> Any:
        from cryptography.fernet import Fernet

        return Fernet(base64.urlsafe_b64encode(self._derive("at rest")))


def load_secret(home: Path, given: str = "") -> str:
    """The given one, or that of `home/secret` (0600), which is made when absent; safe when several processes start."""
    if given:
        return given
    path = home / "secret"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        fresh = home / f".secret-{secrets.token_hex(8)}"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    found = path.read_text().strip()
    if len(found) < SECRET_CHARACTERS:
        raise InvalidRequest(
            f"{path} holds {len(found)} characters where a secret of at least {SECRET_CHARACTERS} is needed",
            hint="Put it back from a copy; a new one would not fit the agents that run with the old one.",
        )
    return found
