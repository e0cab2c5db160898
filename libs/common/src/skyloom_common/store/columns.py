"""Columns that hold contracts or plain JSON as text, the same on every database."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.types import Text, TypeDecorator

from skyloom_common.core import wire


class Json(TypeDecorator[Any]):
    """JSON-able data (contracts inside are encoded); None is SQL NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else wire.dumps(value).decode()

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class WireColumn(TypeDecorator[Any]):
    """One contract class; unknown fields of newer writers are ignored on the way out."""

    impl = Text
    cache_ok = True

    def __init__(self, contract: type[Any]) -> None:
        super().__init__()
        self.contract = contract

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else wire.dumps(value).decode()

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else wire.loads(self.contract, value)
