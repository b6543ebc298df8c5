"""The `blockmig` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from .commands import parse
from .usage import UsageError, discard_output


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, and exit with its status."""
    try:
        raise SystemExit(_run(sys.argv[1:] if arguments is None else arguments))
    finally:
        _flush_output()


def _run(arguments: Sequence[str]) -> int:
    try:
        command, options = parse(arguments)
    except UsageError as error:
        print(f"blockmig: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # a long --help, and `| head`
        return 3
    try:
        return int(command.load().run(options))
    except KeyboardInterrupt:  # where the reactor does not run
        print("blockmig: stopped by SIGINT", file=sys.stderr)
        return 4


def _flush_output() -> None:
    """Flush before the interpreter does: a reader that has left changes no exit status."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the interpreter flushes once more when it ends
        discard_output()
