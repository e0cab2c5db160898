"""The agent's command: `--config FILE`. Reads the settings, takes the home's lock and runs the agent."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from skyloom_agent.paths import Paths
from skyloom_common.contracts.agent import AgentConfig
from skyloom_common.core import wire
from skyloom_common.core.errors import InvalidRequest, SkyloomError


def read_config(path: Path) -> AgentConfig:
    """The settings; refused when others may read the token."""
    try:
        mode = path.stat().st_mode
        config = wire.loads(AgentConfig, path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"--config: {path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidRequest(f"--config: {path} holds a token and others may read it; chmod 600 {path}")
    if not config.token:
        raise InvalidRequest(f"token: {path} holds an empty one")
    return config


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="skyloom-agent", description="Runs the jobs of one node.")
    parser.add_argument("--config", required=True, type=Path, help="AgentConfig as JSON, mode 0600")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    os.umask(0o022)
    try:
        config = read_config(arguments.config)
        paths = Paths(Path(config.home))
        paths.make()
        # Late: these load sqlite, h11 and asyncio, which a wrong command line does not need.
        from skyloom_agent.agent import Agent, only_one

        async def run() -> None:
            await Agent(config).run()

        with only_one(paths):
            paths.use_reserve()
            paths.forget_old_runtimes(Path(__file__).resolve().parent.parent)
            asyncio.run(run())
    except SkyloomError as error:
        logging.getLogger(__name__).error("%s", error.message)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
