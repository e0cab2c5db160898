"""What an API request asks for, as far as a balancer wants to know. Pure; nothing here decides where it goes."""

from __future__ import annotations

import enum
import posixpath
import re
from typing import Any

import orjson


class Kind(enum.Enum):
    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    OTHER = "other"
    """Any other POST below /v1: routed by its model when it names one."""


PATHS = {
    b"/v1/chat/completions": Kind.CHAT,
    b"/v1/completions": Kind.COMPLETIONS,
    b"/v1/embeddings": Kind.EMBEDDINGS,
    b"/v1/responses": Kind.RESPONSES,
}
MODELS = b"/v1/models"
DEFAULT_COMPLETION_TOKENS = 256
"""What a request is estimated to make when it does not say."""
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_SMALL = 16 * 1024
_BYTES_PER_TOKEN = 4
_MOST_ANSWERS = 128
_TEXTS = ("messages", "prompt", "input")


class BadRequest(Exception):
    """The body is not what the path wants; a sentence for people."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def plain_path(path: bytes) -> bytes:
    """The path as an endpoint's server may read it: what is written in another way is not to pass as another path."""
    if b"%" not in path and b"//" not in path and b"/." not in path:
        return path
    decoded = posixpath.normpath(_ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), path))
    return b"/" + decoded.lstrip(b"/")


def parse(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise BadRequest("The body is not a JSON object.")
    return data


def kind_of(path: bytes) -> Kind:
    """Of a plain path; engines mostly serve one that ends with a slash as the one without."""
    return PATHS.get(path.rstrip(b"/"), Kind.OTHER)


def object_in(body: bytes) -> dict[str, Any]:
    """Of a body that may be anything; empty when it is no JSON object."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return data if isinstance(data, dict) else {}


def model_of(data: dict[str, Any]) -> str:
    model = data.get("model")
    if model is None:
        return ""
    if not isinstance(model, str):
        raise BadRequest("model: a string is wanted.", "model")
    return model


def stream_of(data: dict[str, Any]) -> bool:
    """Some engines take 1 or "true" for true, and others do not: there must be one reading."""
    stream = data.get("stream")
    if stream is None or stream is False:
        return False
    if stream is not True:
        raise BadRequest("stream: true or false is wanted.", "stream")
    return True


def generates(kind: Kind, data: dict[str, Any]) -> bool:
    """Whether tokens are made or read: also by paths that we do not know (/v1/messages)."""
    return kind is not Kind.OTHER or any(name in data for name in _TEXTS)


def choices_of(kind: Kind, data: dict[str, Any]) -> int:
    """How many answers are asked for: `n` for each prompt, of which only completions have several."""
    several, prompt = data.get("n"), data.get("prompt")
    times = several if isinstance(several, int) and several > 0 else 1
    if (
        kind is Kind.COMPLETIONS
        and isinstance(prompt, list)
        and prompt
        and isinstance(prompt[0], (str, list))
    ):
        return int(times) * len(prompt)
    return int(times)


def max_tokens_of(data: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = data.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def prompt_tokens_of(data: dict[str, Any], size: int) -> int:
    """An estimate: a quarter of the bytes, without what stands for pictures and sounds in a big body."""
    if size > _SMALL:
        size = sum(_text_bytes(data.get(name)) for name in ("messages", "prompt", "input", "tools"))
    return size // _BYTES_PER_TOKEN + 1


def _text_bytes(value: Any) -> int:
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value)
    if isinstance(value, list):
        if value and isinstance(value[0], int):
            return _BYTES_PER_TOKEN * len(value)
        return sum(map(_text_bytes, value))
    if isinstance(value, dict):
        return sum(_text_bytes(one) for name, one in value.items() if name != "input_audio")
    return 0


def estimate(kind: Kind, data: dict[str, Any], size: int) -> int:
    """Tokens that a request will probably cost."""
    if not generates(kind, data):
        return 0
    prompt = prompt_tokens_of(data, size)
    if kind is Kind.EMBEDDINGS:
        return prompt
    return prompt + min(choices_of(kind, data), _MOST_ANSWERS) * (
        max_tokens_of(data) or DEFAULT_COMPLETION_TOKENS
    )


def prompt_bytes(body: bytes) -> bytes:
    """Where the prompt begins, for prefix affinity: whatever fields a client writes before it say nothing about caches."""
    at = body.find(b'"messages"')
    if at < 0:
        at = max(body.find(b'"prompt"'), body.find(b'"input"'), 0)
    return body[at : at + 8192]


def with_fields(body: bytes, data: dict[str, Any], fields: dict[str, Any]) -> bytes:
    """The body with `fields` set. Cheap when all of them are new: they are written at its end."""
    if not data or any(name in data for name in fields):
        return orjson.dumps({**data, **fields})
    return body[: body.rindex(b"}")] + b"," + orjson.dumps(fields)[1:]
