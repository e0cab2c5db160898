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
_FORM_MODEL = re.compile(rb'name="?model"?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n')


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


def form_model(body: bytes) -> str:
    """The `model` field of a multipart form (audio, files); "" when there is none."""
    found = _FORM_MODEL.search(body)
    return found[1].decode("utf-8", "replace").strip() if found else ""


def with_form_model(body: bytes, model: str) -> bytes:
    found = _FORM_MODEL.search(body)
    return body if found is None else body[: found.start(1)] + model.encode() + body[found.end(1) :]


def model_of(data: dict[str, Any]) -> str:
    model = data.get("model")
    if model is None:
        return ""
    if not isinstance(model, str):
        raise BadRequest("model: a string is wanted.", "model")
    return model


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
    prompt = prompt_tokens_of(data, size)
    if kind is Kind.EMBEDDINGS:
        return prompt
    several = data.get("n")
    times = several if isinstance(several, int) and 0 < several <= 128 else 1
    return prompt + times * (max_tokens_of(data) or DEFAULT_COMPLETION_TOKENS)


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
