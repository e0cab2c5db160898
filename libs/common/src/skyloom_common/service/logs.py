"""Logging of a service process: one line per record, with the request's id, and without secrets.

It must not log bodies, query strings or headers; `hide` removes known secrets wherever they turn up.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
_BEARER = re.compile(
    r"(?i)\b(bearer|token|password|secret|authorization)(['\"]?\s*[:= ]\s*['\"]?)"
    r"(?!is\b|are\b|bearer\b)[^\s'\",;&]{8,}"
)
_URL_PASSWORD = re.compile(r"(\w+://[^\s:/@]*):[^\s/@]+@")


class LineFormatter(logging.Formatter):
    """`TIME LEVEL logger message key=value... request=ID`; line breaks only inside stacks."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._secrets = [secret for secret in secrets if secret]

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = f"{stamp}.{int(record.msecs):03d}Z {record.levelname:<7} {record.name} {record.getMessage()}"
        line = line.replace("\n", "\\n").replace("\r", "\\r")
        if current := request_id.get():
            line += f" request={current}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return self._hide(line)

    def _hide(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return _URL_PASSWORD.sub(r"\1:***@", _BEARER.sub(r"\1\2***", line))


def configure_logging(
    level: str, *, secrets: tuple[str, ...] = (), handler: logging.Handler | None = None
) -> None:
    """For a process's `main`, once. `handler` None = stderr."""
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "uvicorn", "asyncio", "alembic", "aiosqlite"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
