"""Refusals and broken streams in the words and shapes that OpenAI's clients understand. Pure."""

from __future__ import annotations

import orjson

from skyloom_lb.exchange import Refusal
from skyloom_lb.openai.request import BadRequest, Kind

DONE = b"data: [DONE]\n\n"


def no_model(name: str, known: int) -> Refusal:
    words = (
        f"The model {name!r} does not exist or this key may not use it; GET /v1/models lists what it may use."
    )
    if not known:
        words = f"The model {name!r} does not exist: this balancer serves no model yet."
    return Refusal(404, "model_not_found", words, param="model")


NO_MODEL_NAMED = Refusal(
    400, "missing_model", "model: name one of those that GET /v1/models lists.", param="model"
)
NO_PATH = Refusal(404, "not_found", "There is nothing here: only paths below /v1 are served.")
NO_KEY = Refusal(
    401,
    "missing_api_key",
    "No API key was given; send it as 'Authorization: Bearer KEY'.",
    headers=((b"www-authenticate", b"Bearer"),),
)
WRONG_KEY = Refusal(
    401,
    "invalid_api_key",
    "This API key is not known here, or it has ended.",
    headers=((b"www-authenticate", b"Bearer"),),
)


def out_of_scope(scope: str, allowed: tuple[str, ...]) -> Refusal:
    return Refusal(
        403, "insufficient_scope", f"This API key may not do {scope!r}; it may do {', '.join(allowed)}."
    )


def bad_request(bad: BadRequest) -> Refusal:
    return Refusal(400, "invalid_request", bad.message, param=bad.param)


def too_large(megabytes: int) -> Refusal:
    return Refusal(
        413, "request_too_large", f"The body is larger than {megabytes} MB, so that its model cannot be read."
    )


def error_object(code: str, message: str, kind: str = "server_error") -> dict[str, object]:
    return {"message": message, "type": kind, "param": None, "code": code}


def broken_stream(kind: Kind, code: str, message: str, kind_of_error: str = "server_error") -> bytes:
    """The last events of a stream that cannot go on: clients raise the error and stop reading."""
    if kind is Kind.RESPONSES:
        body = {"type": "error", "code": code, "message": message, "param": None}
        return b"event: error\ndata: " + orjson.dumps(body) + b"\n\n"
    return b"data: " + orjson.dumps({"error": error_object(code, message, kind_of_error)}) + b"\n\n" + DONE
