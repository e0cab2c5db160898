"""Starts the stack as a process of its own that outlives the terminal, and waits for its one word."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from skyloom_common.core.home import skyloom_home
from skyloom_standalone.settings import Options


def start_detached(options: Options) -> int:
    """The exit code for the terminal: 0 once it is ready."""
    home = skyloom_home()
    logs = home / "logs"
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "skyloom_standalone", "--ready-fd", str(writer)]
    if options.host is not None:
        command += ["--host", options.host]
    if options.port is not None:
        command += ["--port", str(options.port)]
    with open(logs / "server.out", "ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[writer],
            start_new_session=True,
            cwd=home,
        )
    os.close(writer)
    with os.fdopen(reader) as pipe:
        line = pipe.readline()
    if not line:
        sys.stderr.write(f"the server ended with {process.wait()} before it was ready; see {logs}\n")
        return 1
    word = json.loads(line)
    if "error" in word:
        sys.stderr.write(f"{word['error']['message']} {word['error'].get('hint') or ''}\n")
        return process.wait()
    sys.stdout.write(f"{word['url']}\n")
    # It outlives us on purpose.
    process.returncode = 0
    return 0
