"""Settings from the environment: defaults, every problem at once, one clear sentence each, no secret in any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from skyloom_common.service.env import Env, SettingsError
from skyloom_common.service.settings import ServiceSettings

TOKEN = "a-long-enough-service-token"


@dataclass(frozen=True)
class Demo(ServiceSettings):
    SERVICE: ClassVar[str] = "demo"
    DEFAULT_PORT: ClassVar[int] = 4711
    depth: int = 1

    @classmethod
    def read_own(cls, env: Env) -> dict[str, Any]:
        return {"depth": env.integer("DEMO_DEPTH", 3, low=1, high=9)}


def test_defaults(tmp_path: Path) -> None:
    settings = Demo.from_env({"SKYLOOM_HOME": str(tmp_path), "SKYLOOM_SERVICE_TOKEN": TOKEN})
    assert settings == Demo(
        home=tmp_path,
        service_token=TOKEN,
        database_url=f"sqlite:///{tmp_path}/db/demo.db",
        host="127.0.0.1",
        port=4711,
        depth=3,
    )


def test_everything_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(TOKEN + "\n")
    settings = Demo.from_env(
        {
            "SKYLOOM_SERVICE_TOKEN_FILE": str(tmp_path / "t"),
            "DATABASE_URL": "postgresql://u:p@db/x",
            "REDIS_URL": "redis://bus:6379",
            "SKYLOOM_HOST": "0.0.0.0",
            "SKYLOOM_PORT": "1234",
            "SKYLOOM_LOG_LEVEL": "debug",
            "DEMO_DEPTH": "9",
        }
    )
    assert (settings.service_token, settings.port, settings.log_level, settings.depth) == (
        TOKEN,
        1234,
        "DEBUG",
        9,
    )
    assert (settings.database_url, settings.redis_url) == ("postgresql://u:p@db/x", "redis://bus:6379")


def test_known_values_are_not_read_or_checked(tmp_path: Path) -> None:
    settings = Demo.from_env(
        {"SKYLOOM_PORT": "99", "DEMO_DEPTH": "2"}, home=tmp_path, service_token="x", depth=7
    )
    assert (settings.service_token, settings.port, settings.depth) == ("x", 99, 7)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Demo.from_env(
            {
                "DATABASE_URL": "mysql://root:hunter22@db",
                "REDIS_URL": "tcp://x",
                "SKYLOOM_PORT": "eighty",
                "SKYLOOM_LOG_LEVEL": "loud",
                "SKYLOOM_GRACE_SECONDS": "-1",
                "DEMO_DEPTH": "10",
            }
        )
    text = str(caught.value)
    for name in (
        "SKYLOOM_SERVICE_TOKEN", "DATABASE_URL", "REDIS_URL", "SKYLOOM_PORT", "SKYLOOM_LOG_LEVEL",
        "SKYLOOM_GRACE_SECONDS", "DEMO_DEPTH",
    ):  # fmt: skip
        assert any(problem.startswith(f"{name}:") for problem in caught.value.problems), name
    assert len(caught.value.problems) == 7
    assert "hunter22" not in text


@pytest.mark.parametrize(
    ("name", "value", "right_form"),
    [
        ("SKYLOOM_PORT", "70000", "a whole number from 0 to 65535"),
        ("SKYLOOM_PORT", "1.5", "a whole number from 0 to 65535"),
        ("SKYLOOM_LOG_LEVEL", "loud", "one of DEBUG, INFO, WARNING, ERROR"),
        ("REDIS_URL", "localhost:6379", "redis:// or rediss:// or unix://"),
        ("SKYLOOM_GRACE_SECONDS", "soon", "a number from 0 to 3600"),
    ],
)
def test_a_problem_names_variable_value_and_right_form(name: str, value: str, right_form: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Demo.from_env({"SKYLOOM_SERVICE_TOKEN": TOKEN, name: value})
    [problem] = caught.value.problems
    assert problem.startswith(f"{name}: '{value}' is not valid")
    assert right_form in problem


@pytest.mark.parametrize("bad", ["tiny-one", "with a blank in the middle", "ünïcodeünïcodeünïcode"])
def test_a_bad_secret_is_refused_and_not_repeated(bad: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Demo.from_env({"SKYLOOM_SERVICE_TOKEN": bad})
    assert bad not in str(caught.value)


def test_a_token_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="SKYLOOM_SERVICE_TOKEN_FILE: '/none/such' cannot be read"):
        Demo.from_env({"SKYLOOM_SERVICE_TOKEN_FILE": "/none/such"})


def test_settings_do_not_show_secrets(tmp_path: Path) -> None:
    settings = Demo.from_env({"SKYLOOM_SERVICE_TOKEN": TOKEN, "DATABASE_URL": "postgresql://u:hunter22@db/x"})
    assert TOKEN not in repr(settings)
    assert "hunter22" not in repr(settings)


@pytest.mark.parametrize(("raw", "value"), [("1", True), ("yes", True), ("off", False), ("", False)])
def test_flags(raw: str, value: bool) -> None:
    env = Env({"X": raw})
    assert env.flag("X") is value
    env.check()
    assert Env({}).flag("X", default=True) is True
    wrong = Env({"X": "perhaps"})
    wrong.flag("X")
    assert wrong.problems == ["X: 'perhaps' is not valid; use 1 or 0"]
