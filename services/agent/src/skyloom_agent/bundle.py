"""Makes the agent one file: a zipapp of skyloom_agent, the two lowest layers of skyloom_common, and h11.

The bytes depend on the sources alone (order, times and modes are fixed), so the file's hash says what is in it. When
started it unpacks itself once into `<home>/.sky/runtime/<hash>/`, so that later starts, and the runner of every job,
use compiled files.

    python -m skyloom_agent.bundle --out agent.pyz
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

PACKAGES = ("skyloom_agent", "skyloom_common", "skyloom_common.core", "skyloom_common.contracts", "h11")
LEFT_OUT = ("skyloom_agent/bundle.py", "skyloom_common/contracts/task/")
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
SHEBANG = b"#!/usr/bin/env python3\n"

# Runs before anything is unpacked, on whatever python3 the node has: only old syntax, only the standard library.
STARTER = '''\
import os
import sys

RUNTIME = "@RUNTIME@"


def option(name):
    for index, argument in enumerate(sys.argv):
        if argument == name and index + 1 < len(sys.argv):
            return sys.argv[index + 1]
        if argument.startswith(name + "="):
            return argument[len(name) + 1:]
    return None


def home():
    import json

    path = option("--config")
    try:
        with open(path) as file:
            return json.load(file)["home"]
    except (TypeError, OSError, ValueError, KeyError):
        return None


def unpacked(base):
    """The directory of the unpacked files: private, complete, and made once."""
    import shutil
    import tempfile
    import zipfile

    target = os.path.join(base, ".sky", "runtime", RUNTIME)
    if os.path.isfile(os.path.join(target, "complete")):
        if os.stat(target).st_uid == os.getuid():
            return target
        raise SystemExit("%s belongs to another user" % target)
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    made = tempfile.mkdtemp(dir=os.path.dirname(target))
    try:
        with zipfile.ZipFile(os.path.abspath(sys.argv[0])) as archive:
            archive.extractall(made)
        open(os.path.join(made, "complete"), "w").close()
        try:
            os.rename(made, target)
        except OSError:
            if not os.path.isdir(target):
                raise
            if not os.path.isfile(os.path.join(target, "complete")):
                shutil.rmtree(target, ignore_errors=True)
                os.rename(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def start():
    if sys.version_info < (3, 9):
        raise SystemExit("the agent needs Python 3.9 or newer, this is %d.%d" % sys.version_info[:2])
    base = home()
    if base:
        sys.dont_write_bytecode = False
        sys.path[0] = unpacked(base)
    from skyloom_agent.main import main

    raise SystemExit(main())


start()
'''


def build(dest: Path) -> Path:
    """Writes the zipapp to `dest` (a file, or a directory to put agent.pyz into) and says where it is."""
    target = dest / "agent.pyz" if dest.is_dir() else dest
    files = dict(sorted(_files()))
    files["__main__.py"] = STARTER.replace("@RUNTIME@", _digest(files)).encode()
    temporary = target.with_name(target.name + ".tmp")
    with open(temporary, "wb") as raw:
        raw.write(SHEBANG)
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, content in files.items():
                entry = zipfile.ZipInfo(name, FIXED_TIME)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                entry.create_system = 3
                archive.writestr(entry, content)
    temporary.chmod(0o755)
    temporary.replace(target)
    return target


def _files() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        root = _directory(package)
        # skyloom_common itself only gives its __init__: its other layers are not the agent's.
        pattern = "*.py" if package == "skyloom_common" else "**/*.py"
        for path in sorted(root.glob(pattern)):
            name = f"{package.replace('.', '/')}/{path.relative_to(root).as_posix()}"
            if not name.startswith(LEFT_OUT) and "/tests/" not in name:
                yield name, path.read_bytes()


def _directory(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed, so the agent cannot be made")
    return Path(next(iter(spec.submodule_search_locations)))


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256(STARTER.encode())
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:24]


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Makes agent.pyz.")
    parser.add_argument("--out", required=True, type=Path, help="the file to write")
    arguments = parser.parse_args(argv)
    path = build(arguments.out)
    sys.stdout.write(f"{path} ({path.stat().st_size // 1024} KiB)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
