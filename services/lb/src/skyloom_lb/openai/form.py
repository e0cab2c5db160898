"""The model in a multipart form. Pure; where a model is allowed or refused by it, only a form that has one reading is read.

Parsers of forms differ in what they forgive (line ends, blanks, quotes, text before the first part, a field given twice). So a
*plain* form is one without any of that: what is read in it is what every engine reads.
"""

from __future__ import annotations

import re

from skyloom_lb.openai.request import BadRequest

Span = tuple[int, int]
"""Where the model's name is in the body."""
_ANY_MODEL = re.compile(rb'name="?model"?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n')
_CONTENT_TYPE = re.compile(
    rb"multipart/form-data *; *boundary=(?:\"([0-9A-Za-z'()+_,./:=?-]{1,70})\"|([0-9A-Za-z'+_.-]{1,70}))"
    rb'(?: *; *charset="?utf-?8"?)?',
    re.IGNORECASE,
)
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_DISPOSITION = re.compile(rb'form-data((?: *; *[a-z]+\*?=(?:"[^"\\]*"|[^\s";,\\]+))*)')
_PARAMETER = re.compile(rb'; *([a-z]+\*?)=("[^"\\]*"|[^\s";,\\]+)')
_PARAMETERS = (
    [b"name"],
    [b"filename", b"name"],
    [b"filename", b"filename*", b"name"],
    [b"filename*", b"name"],
)
_TEXT = {
    b"content-disposition": re.compile(rb".*", re.DOTALL),
    b"content-length": re.compile(rb"\d+"),
    b"content-transfer-encoding": re.compile(rb"7bit|8bit|binary", re.IGNORECASE),
    b"content-type": re.compile(
        rb'text/plain(?: *; *charset="?(?:utf-?8|us-ascii|iso-8859-1)"?)?', re.IGNORECASE
    ),
}
"""Headers that leave a text what it is: some clients write them."""
_VALUE = re.compile(rb"[!-~](?:[ -~]{0,254}[!-~])?")


class _NotPlain(Exception):
    """Why, as the end of a sentence."""


def any_model(body: bytes) -> Span | None:
    """The first field of that name in any form, or in the beginning of one: to choose a service by, never to allow something."""
    found = _ANY_MODEL.search(body)
    return found.span(1) if found is not None else None


def the_model(content_type: bytes, body: bytes) -> Span | None:
    """The only `model` of a plain form; None when it has none. Raises BadRequest for any other form."""
    try:
        return _only_model(content_type, body)
    except _NotPlain as error:
        raise BadRequest(f"The form cannot be read in one way only: {error}.") from None


def named(body: bytes, span: Span | None) -> str:
    return body[span[0] : span[1]].decode("utf-8", "replace").strip() if span is not None else ""


def with_model(body: bytes, span: Span | None, model: str) -> bytes:
    return body if span is None else body[: span[0]] + model.encode() + body[span[1] :]


def _only_model(content_type: bytes, body: bytes) -> Span | None:
    told = _CONTENT_TYPE.fullmatch(content_type)
    if told is None:
        raise _NotPlain("its Content-Type is not multipart/form-data with a boundary")
    found: Span | None = None
    for start, end in _parts(b"--" + (told[1] or told[2]), body):
        head_end = body.find(b"\r\n\r\n", start, end)
        if head_end < 0:
            raise _NotPlain("a part has no headers")
        headers = _headers(body[start:head_end])
        if _is_model(headers):
            if found is not None:
                raise _NotPlain("model is there twice")
            found = (head_end + 4, end)
            if not _VALUE.fullmatch(body, *found):
                raise _NotPlain("model is not a name")
    return found


def _parts(mark: bytes, body: bytes) -> list[Span]:
    """Where each part is. The mark may be nowhere but between the parts, for whoever looks for it in another way."""
    if not body.startswith(mark + b"\r\n"):
        raise _NotPlain("it does not begin with its boundary")
    parts: list[Span] = []
    start = len(mark) + 2
    while True:
        end = body.find(b"\r\n" + mark, start)
        after = end + 2 + len(mark)
        if end < 0 or body[after : after + 2] not in (b"\r\n", b"--"):
            raise _NotPlain("it does not end with its boundary")
        parts.append((start, end))
        start = after + 2
        if body[after : after + 2] == b"--":
            break
    if body[start:] not in (b"", b"\r\n") or body.count(mark) != len(parts) + 1:
        raise _NotPlain("its boundary is also within a part, or there is more after its end")
    return parts


def _headers(block: bytes) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in block.split(b"\r\n"):
        found = _HEADER.fullmatch(line)
        if found is None or found[1].lower() in headers:
            raise _NotPlain("a part's header is folded, there twice or not a header")
        headers[found[1].lower()] = found[2].rstrip(b" \t")
    return headers


def _is_model(headers: dict[bytes, bytes]) -> bool:
    """Whether the part is the field `model`, and then nothing but a text."""
    disposition = _DISPOSITION.fullmatch(headers.get(b"content-disposition", b""))
    if disposition is None:
        raise _NotPlain("a part's Content-Disposition is not form-data with a name")
    pairs = [(name, value.strip(b'"')) for name, value in _PARAMETER.findall(disposition[1])]
    names = sorted(name for name, _ in pairs)
    if names not in _PARAMETERS:
        raise _NotPlain("a part's Content-Disposition is not form-data with a name")
    if dict(pairs)[b"name"] != b"model":
        return False
    if names != [b"name"] or not all(one in _TEXT and _TEXT[one].fullmatch(headers[one]) for one in headers):
        raise _NotPlain("model is not a plain text")
    return True
