"""Builds the container from the CSV form, or writes the CSV form back from a container.

    python -m skyloom_optimizer.catalog.build --source DIR
    python -m skyloom_optimizer.catalog.build --export DIR

The result replaces the old container only when it is complete and reads back.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from skyloom_optimizer.catalog import columns, csvform
from skyloom_optimizer.catalog.columns import Container, CorruptContainer

DATA = Path(__file__).parent / "data"
CONTAINER = DATA / "catalog.skycol"
FORM_VERSION = 1


def build(source: Path, fallback: Path = DATA) -> bytes:
    """The container's bytes. Raises csvform.BadSource."""
    tables = csvform.read_source(source, fallback)
    rows = {name: csvform.length(table) for name, table in sorted(tables.items())}
    return columns.pack(tables, {"form": FORM_VERSION, "rows": rows})


def replace_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m skyloom_optimizer.catalog.build", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--source", type=Path, metavar="DIR", help="folder with the CSV form")
    action.add_argument("--export", type=Path, metavar="DIR", help="write the CSV form into this folder")
    parser.add_argument("--container", type=Path, default=CONTAINER, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        report = _export(options) if options.export else _build(options)
    except (csvform.BadSource, CorruptContainer, OSError) as error:
        sys.stderr.write(f"catalog: {error}\n")
        return 1
    sys.stdout.write(f"{report}\n")
    return 0


def _build(options: argparse.Namespace) -> str:
    data = build(options.source)
    container = Container(data)
    container.verify()
    replace_file(options.container, data)
    rows = container.meta["rows"]
    what = f"{rows['offers']} offers, {rows['machines']} machine types, {rows['doubtful']} doubtful prices"
    return f"{options.container}: {what}, {len(data)} bytes, version {container.sha256[:12]}"


def _export(options: argparse.Namespace) -> str:
    written = csvform.write_source(Container(options.container.read_bytes()), options.export)
    return "\n".join(map(str, written))


if __name__ == "__main__":
    sys.exit(main())
