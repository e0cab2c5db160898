"""Where the `sky` command begins. It must import nothing that a help text does not need."""

from __future__ import annotations

import os
import sys

from sky.cli import tree


def main() -> int:
    """Runs the command line of this process; the exit code."""
    answer = None if "_SKY_COMPLETE" in os.environ else tree.quick_answer(sys.argv[1:])
    if answer is not None:
        sys.stdout.write(answer + "\n")
        return 0
    from sky.cli.app import cli

    return cli.main(prog_name="sky")


if __name__ == "__main__":
    sys.exit(main())
