"""Which server is used, from what; what is written on this machine, and removed again."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sky import names_cache, settings, ssh_config, stack
from sky.cli import completion
from sky.cli.output import ago, table, width
from sky.exceptions import ClientError, InvalidSkyPilotConfigError
from skyloom_common.contracts.clusters import Cluster, ClusterStatus

Sky = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKYLOOM_HOME", str(tmp_path / "skyloom"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "skyloom").mkdir()
    return tmp_path


def test_the_local_stack_is_meant_when_nobody_says_otherwise(home: Path) -> None:
    assert settings.configured_server() is None


def test_environment_beats_files_and_the_newer_name_the_older(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".sky").mkdir()
    (home / ".sky" / "config.yaml").write_text(
        "api_server: {endpoint: 'http://old:1', service_account_token: sky_a}\n"
    )
    found = settings.configured_server()
    assert found is not None and (found.endpoint, found.token) == ("http://old:1", "sky_a")
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "http://peer:2")
    found = settings.configured_server()
    assert found is not None and found.endpoint == "http://peer:2"
    monkeypatch.setenv("SKYLOOM_API_SERVER_ENDPOINT", "http://ours:3")
    monkeypatch.setenv("SKYLOOM_TOKEN", "sky_b")
    found = settings.configured_server()
    assert found is not None and (found.endpoint, found.token) == ("http://ours:3", "sky_b")
    assert found.source == "environment SKYLOOM_API_SERVER_ENDPOINT"


def test_ours_hides_the_peers_file_and_the_project_and_flag_win(home: Path) -> None:
    (home / ".sky").mkdir()
    (home / ".sky" / "config.yaml").write_text("api_server: {endpoint: 'http://old:1'}\nkeep: 1\n")
    (home / "skyloom" / "config.yaml").write_text("api_server: {endpoint: 'http://ours:1', x: 1}\n")
    assert settings.load_config() == {"api_server": {"endpoint": "http://ours:1", "x": 1}}
    (home / ".sky.yaml").write_text("api_server: {endpoint: 'http://project:1'}\n")
    assert settings.load_config()["api_server"] == {"endpoint": "http://project:1", "x": 1}
    found = settings.configured_server(["api_server.endpoint=http://flag:1"])
    assert found is not None and (found.endpoint, found.source) == ("http://flag:1", "--config")


@pytest.mark.parametrize("item", ["nowhere", "=x", "a..b=1"])
def test_a_wrong_config_flag(home: Path, item: str) -> None:
    with pytest.raises(InvalidSkyPilotConfigError, match="--config"):
        settings.parse_overrides([item])


def test_a_broken_config_file_is_named(home: Path) -> None:
    (home / "skyloom" / "config.yaml").write_text("api_server: [\n")
    with pytest.raises(InvalidSkyPilotConfigError, match=r"config\.yaml: not YAML"):
        settings.configured_server()


def test_a_dead_stack_does_not_count(home: Path) -> None:
    (home / "skyloom" / "api.json").write_text('{"url": "http://127.0.0.1:1", "pid": 1}')
    assert stack.address() is not None
    assert stack.running() is None


def test_whoever_took_a_dead_stacks_port_gets_no_token(home: Path) -> None:
    """After kill -9 api.json stays; its port may be another's stack now, its process number another process."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    me = os.getpid()
    began = (
        Path(f"/proc/{me}/stat").read_text().rpartition(")")[2].split()[19]
        if Path("/proc").is_dir()
        else None
    )
    (home / "skyloom" / "token").write_text("sky_ours")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        url = f"http://127.0.0.1:{stranger.getsockname()[1]}"
        for pid, started, ours in ((ended.pid, None, False), (me, "1", began is None), (me, began, True)):
            word = {"url": url, "pid": pid, "process_started": started}
            (home / "skyloom" / "api.json").write_text(json.dumps(word))
            address = stack.address()
            assert address is not None
            assert address.token == ("sky_ours" if ours else None)
            assert (stack.running() is not None) == ours


def test_autostart_can_be_forbidden(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYLOOM_NO_AUTOSTART", "1")
    with pytest.raises(Exception, match="SKYLOOM_NO_AUTOSTART forbids"):
        stack.ensure_started()


def test_a_stack_that_dies_says_its_last_words(home: Path) -> None:
    command = ["/bin/sh", "-c", "echo no port is free >&2; exit 3"]
    with pytest.raises(ClientError, match=r"no port is free"):
        stack._spawn(command, home, home / "out", 10.0)


def test_a_stack_that_reports_an_error(home: Path) -> None:
    report = '{"error": {"message": "it runs already", "hint": "wait"}}\n'
    command = [sys.executable, "-c", f"import os, sys; os.write(int(sys.argv[2]), {report.encode()!r})"]
    with pytest.raises(ClientError, match="it runs already") as caught:
        stack._spawn(command, home, home / "out", 10.0)
    assert caught.value.hint == "wait"


# --- ssh ---


def a_cluster(name: str, **more: Any) -> Cluster:
    return Cluster(f"c-{name}", name, ClusterStatus.UP, "ann", 1, time.time(), **more)


SSH = {"hosts": [{"name": "dev", "host": "10.0.0.1", "port": 22, "user": "ubuntu"}]}


def test_an_alias_is_written_and_removed_without_touching_other_lines(home: Path) -> None:
    config = home / ".ssh" / "config"
    config.parent.mkdir()
    config.write_text("Host mine\n  User me\n")
    ssh_config.write(a_cluster("dev", ssh=SSH))
    ssh_config.write(a_cluster("dev", ssh=SSH))
    text = config.read_text()
    assert text.count(f"Include {home}/skyloom/ssh/*") == 1
    assert text.endswith("Host mine\n  User me\n")
    alias = home / "skyloom" / "ssh" / "dev"
    assert alias.read_text().startswith("Host dev\n  HostName 10.0.0.1\n  Port 22\n  User ubuntu\n")
    assert stat.S_IMODE(alias.stat().st_mode) == 0o600
    ssh_config.remove("dev")
    assert config.read_text() == "Host mine\n  User me\n"
    assert not alias.exists()


def test_no_ssh_no_files(home: Path) -> None:
    ssh_config.write(a_cluster("dev"))
    assert not (home / ".ssh").exists()
    assert not (home / "skyloom" / "ssh").exists()


def test_a_gone_cluster_loses_its_alias_at_the_next_status(fake: Any, sky: Sky, tmp_path: Path) -> None:
    fake.add_cluster("dev", ssh=SSH)
    sky("status")
    assert (tmp_path / "skyloom" / "ssh" / "dev").is_file()
    del fake.clusters["dev"]
    sky("status")
    assert not (tmp_path / "skyloom" / "ssh").exists()
    assert "Include" not in (tmp_path / ".ssh" / "config").read_text()


def test_a_server_cannot_write_a_directive(home: Path) -> None:
    bad = {"hosts": [{"name": "dev", "host": "h\n  ProxyCommand evil"}]}
    with pytest.raises(ValueError, match="line break"):
        ssh_config.write(a_cluster("dev", ssh=bad))


# --- completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_once_and_removed(home: Path, shell: str) -> None:
    rc = home / (".bashrc" if shell == "bash" else ".zshrc")
    rc.write_text("alias a=b\n")
    completion.install(shell)
    completion.install(shell)
    script = (
        home / ".config/fish/completions/sky.fish"
        if shell == "fish"
        else home / f"skyloom/completion/sky.{shell}"
    )
    assert "_SKY_COMPLETE" in script.read_text()
    assert rc.read_text().count(completion.MARK) == (0 if shell == "fish" else 1)
    completion.uninstall(shell)
    assert rc.read_text() == "alias a=b\n"
    assert not script.exists()


def test_completion_offers_commands_and_clusters(
    fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add_cluster("dev")
    fake.add_cluster("prod")
    monkeypatch.setenv("_SKY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "sky st")
    monkeypatch.setenv("COMP_CWORD", "1")
    words = {line.partition(",")[2] for line in sky().out.splitlines()}
    assert words == {"status", "start", "stop"} | {"storage"}
    monkeypatch.setenv("COMP_WORDS", "sky logs d")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert sky().out == "plain,dev\n"


def test_names_are_remembered_for_completion(home: Path) -> None:
    names_cache.replace(["b", "a"])
    names_cache.add("c")
    names_cache.remove("a")
    assert completion.cluster_names() == ["b", "c"]


# --- tables ---


def test_tables_align_wide_characters() -> None:
    text = table(["NAME", "X"], [["训练", 1], ["é́", None], ["a\x1b[31mb", ""]])
    assert text.splitlines()[1:] == ["训练     1", "é́        -", "a [31mb  -"]
    assert len({width(line) for line in text.splitlines()}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "just now"),
        (59, "59 secs ago"),
        (60, "1 min ago"),
        (300, "5 mins ago"),
        (7200, "2 hrs ago"),
        (90000, "1 day ago"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert ago(1000.0, 1000.0 + seconds) == text


def test_color_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from sky.cli import output

    class Terminal:
        def isatty(self) -> bool:
            return True

    assert output.paint("x", "red", Terminal()) != "x" or os.environ.get("TERM") == "dumb"  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("x", "red", Terminal()) == "x"  # type: ignore[arg-type]


def test_the_thin_client_says_that_it_is_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ClientError, match="thin client") as caught:
        stack.start()
    assert "sky api login" in str(caught.value.hint)


def test_rules_are_as_wide_as_the_table_also_in_color(monkeypatch: pytest.MonkeyPatch) -> None:
    from sky.cli import output

    monkeypatch.setattr(output, "use_color", lambda _stream: True)
    lines = table(["A", "STATUS"], [["x", "UP"]], color_column="STATUS", rules=True).splitlines()
    assert lines[0] == lines[2] == lines[-1] == "-" * 9
    assert "\x1b[32mUP    \x1b[0m" in lines[3]
