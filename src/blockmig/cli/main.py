"""The `blockmig` command."""

from __future__ import annotations

import sys
from typing import NoReturn

from .commands import parse
from .usage import UsageError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, and exit with its status."""
    try:
        command, options = parse(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        print(f"blockmig: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    try:
        status = int(command.load().run(options))
    except KeyboardInterrupt:  # where the reactor does not run
        print("blockmig: stopped by SIGINT", file=sys.stderr)
        status = 4
    raise SystemExit(status)
