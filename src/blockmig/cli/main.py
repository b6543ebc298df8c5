"""The `blockmig` command."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from .commands import parse
from .usage import UsageError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, and exit with its status."""
    try:
        try:
            command, options = parse(sys.argv[1:] if arguments is None else arguments)
            status = int(command.load().run(options))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except UsageError as error:
        print(f"blockmig: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:  # where the reactor does not run
        print("blockmig: stopped by SIGINT", file=sys.stderr)
        status = 4
    except BrokenPipeError:  # of `| head`; the interpreter flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 3
    raise SystemExit(status)
