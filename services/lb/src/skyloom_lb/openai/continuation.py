"""How a broken generation goes on elsewhere: from what was asked and what the client has got so far. Pure.

Three ways, the best first: by token ids (exact, when the engine told them), by an open assistant message (chat) or by prompt
plus text (completions). What was given to the client is never asked for again; where that cannot be had, the answer is why not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from skyloom_lb.openai.request import Kind

_GUIDED = (
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "json_schema", "regex", "ebnf",
)  # fmt: skip
_COMPLETIONS_DEFAULT = 16


@dataclass(slots=True)
class SoFar:
    """What the client has of one answer. `obstacle`: why it cannot be continued, "" = nothing known.

    `token_ids` and `prompt_ids` are None when the engine did not tell all of them.
    """

    parts: list[str] = field(default_factory=list)
    tokens: int = 0
    token_ids: list[int] | None = None
    prompt_ids: list[int] | None = None
    obstacle: str = ""
    finish: str = ""

    @property
    def text(self) -> str:
        if len(self.parts) > 1:
            self.parts = ["".join(self.parts)]
        return self.parts[0] if self.parts else ""

    def keep(self, text: str) -> None:
        parts = self.parts
        parts.append(text)
        if len(parts) > 256:
            self.parts = [self.text]

    @property
    def nothing(self) -> bool:
        """Nothing of the answer's substance has reached the client: it may simply be asked for again."""
        return not self.tokens and not self.obstacle and not self.text


@dataclass(frozen=True, slots=True)
class GoOn:
    """`given`: how many tokens of the answer the new prompt holds. `as_completion`: a chat answer comes in the other form."""

    body: bytes
    target: bytes | None = None
    given: int = 0
    as_completion: bool = False


@dataclass(frozen=True, slots=True)
class Complete:
    """Nothing is missing but the end: `finish` is what it is called."""

    finish: str


@dataclass(frozen=True, slots=True)
class Cannot:
    why: str


def go_on(kind: Kind, sent: bytes, so_far: SoFar, *, by_ids: bool = True) -> GoOn | Complete | Cannot:
    """`sent` is the body that the first endpoint got."""
    if so_far.finish:
        return Complete(so_far.finish)
    if so_far.nothing:
        return GoOn(sent)
    request: dict[str, Any] = orjson.loads(sent)
    why = so_far.obstacle or obstacle(kind, request)
    if why:
        return Cannot(why)
    left = _tokens_left(kind, request, so_far.tokens)
    if left is not None and left <= 0:
        return Complete("length")
    return _continued(kind, request, so_far, by_ids)


def only_usage(kind: Kind, sent: bytes, so_far: SoFar) -> GoOn | Cannot:
    """A request whose answer tells how many tokens the prompt has: one token that nobody will see."""
    request: dict[str, Any] = orjson.loads(sent)
    for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        request.pop(name, None)
    request["max_tokens"] = 1
    if so_far.obstacle or obstacle(kind, request):
        return GoOn(orjson.dumps({**request, "n": 1, "best_of": 1} if "n" in request else request))
    found = _continued(kind, request, SoFar([so_far.text], 0), by_ids=False)
    if isinstance(found, GoOn):
        return GoOn(found.body, found.target, so_far.tokens, found.as_completion)
    return found


def obstacle(kind: Kind, request: dict[str, Any]) -> str:
    """What in a request makes its answer one that cannot be continued; "" when nothing does."""
    if kind not in (Kind.CHAT, Kind.COMPLETIONS):
        return f"answers of {kind.value} cannot be continued"
    for name in ("n", "best_of"):
        value = request.get(name)
        if isinstance(value, int) and value > 1:
            return f"{name} is {value}"
    if request.get("logprobs") or request.get("top_logprobs") or request.get("prompt_logprobs") is not None:
        return "log probabilities were asked for"
    if request.get("stop") and request.get("include_stop_str_in_output"):
        return "a part of a stop string may have been given"
    if request.get("use_beam_search"):
        return "use_beam_search is on"
    form = request.get("response_format")
    if isinstance(form, dict) and form.get("type") not in (None, "text"):
        return f"response_format is {form.get('type')}"
    guided = next((name for name in _GUIDED if request.get(name)), "")
    if guided:
        return f"{guided} was asked for"
    if kind is Kind.COMPLETIONS:
        return _prompt_obstacle(request)
    return ""


def _prompt_obstacle(request: dict[str, Any]) -> str:
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) and len(prompt) > 1:
        return f"there are {len(prompt)} prompts"
    if request.get("echo"):
        return "echo is on"
    return "suffix was given" if request.get("suffix") else ""


def _tokens_left(kind: Kind, request: dict[str, Any], given: int) -> int | None:
    found = [
        value
        for name in ("max_completion_tokens", "max_tokens")
        if isinstance(value := request.get(name), int) and not isinstance(value, bool)
    ]
    if not found:
        return _COMPLETIONS_DEFAULT - given if kind is Kind.COMPLETIONS else None
    return min(found) - given


def _less(kind: Kind, request: dict[str, Any], given: int) -> dict[str, Any]:
    """The request with its token limits less what was given already."""
    made = dict(request)
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(made.get(name), int):
            made[name] -= given
    if kind is Kind.COMPLETIONS and made.get("max_tokens") is None:
        made["max_tokens"] = _COMPLETIONS_DEFAULT - given
    least = made.get("min_tokens")
    if isinstance(least, int):
        made["min_tokens"] = max(0, least - given)
    return made


def _continued(kind: Kind, request: dict[str, Any], so_far: SoFar, by_ids: bool) -> GoOn | Cannot:
    made = _less(kind, request, so_far.tokens)
    if by_ids and so_far.token_ids is not None and len(so_far.token_ids) == so_far.tokens:
        ids = so_far.prompt_ids if so_far.prompt_ids is not None else _ids(request.get("prompt"))
        # Chat answers are bounded by the context, completions by 16 tokens: only a limit of its own means the same in both.
        limited = kind is Kind.COMPLETIONS or made.get("max_tokens") or made.get("max_completion_tokens")
        # With `stop` an engine holds text back whose tokens it has told.
        if ids is not None and limited and not request.get("tools") and not request.get("stop"):
            return _by_ids(kind, made, ids + so_far.token_ids, so_far.tokens)
    if kind is Kind.CHAT:
        made["messages"] = _with_partial(request, so_far.text)
        made["continue_final_message"], made["add_generation_prompt"] = True, False
        return GoOn(orjson.dumps(made), None, so_far.tokens)
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not isinstance(prompt, str):
        return Cannot("the prompt is token ids and the engine did not tell those of its answer")
    made["prompt"] = prompt + so_far.text
    return GoOn(orjson.dumps(made), None, so_far.tokens)


def _by_ids(kind: Kind, made: dict[str, Any], ids: list[int], given: int) -> GoOn:
    if kind is Kind.COMPLETIONS:
        made["prompt"] = ids
        return GoOn(orjson.dumps(made), None, given)
    for name in ("messages", "tools", "tool_choice", "add_generation_prompt", "continue_final_message",
                 "chat_template", "chat_template_kwargs", "response_format", "logprobs"):  # fmt: skip
        made.pop(name, None)
    limit = made.pop("max_completion_tokens", None) or made.get("max_tokens")
    if limit is not None:
        made["max_tokens"] = limit
    made["prompt"] = ids
    return GoOn(orjson.dumps(made), b"/v1/completions", given, as_completion=True)


def _ids(prompt: Any) -> list[int] | None:
    if isinstance(prompt, list) and prompt and all(isinstance(one, int) for one in prompt):
        return prompt
    return None


def _with_partial(request: dict[str, Any], text: str) -> list[Any]:
    """The messages with the answer so far: as a new open one, or in the client's own open one."""
    messages = list(request.get("messages") or ())
    last = messages[-1] if messages else None
    if request.get("continue_final_message") and isinstance(last, dict):
        content = last.get("content")
        if isinstance(content, list):
            content = [*content, {"type": "text", "text": text}]
        else:
            content = (content or "") + text
        return [*messages[:-1], {**last, "content": content}]
    return [*messages, {"role": "assistant", "content": text}]
