"""What routes say of their answers. Only the OpenAPI document needs it: describing models costs a start too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answers:
    """`@routes.get(path, **answers(ClusterList))`; `described` false leaves the model out."""

    described: bool = False

    def __call__(self, model: Any, status: int = 200) -> dict[str, Any]:
        return {"status_code": status, "response_model": model if self.described else None}
