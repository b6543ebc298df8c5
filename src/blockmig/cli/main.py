"""The `blockmig` command."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from .commands import parse
from .usage import OutputFailed, UsageError, complain, flush_output

_LAST_STANDARD_DESCRIPTOR: Final = 2


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, and exit with its status.

    @param arguments: None for those of this process, which ends then and there.
    """
    occupy_standard_descriptors()
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        flush_output()
    except OutputFailed as error:
        complain(error)
        status = 3
    if arguments is None:
        _leave(status)
    raise SystemExit(status)


def _leave(status: int) -> NoReturn:
    """End the process as the interpreter would, but without taking apart first what was imported.

    That would take longer than everything else after the last byte, and free nothing that the
    kernel does not free by itself.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # as far as there is any
            stream.flush()
    os._exit(status)


def _run(arguments: Sequence[str]) -> int:
    try:
        command, options = parse(arguments)
    except UsageError as error:
        complain(error)
        return 1
    try:
        return int(command.load().run(options))
    except KeyboardInterrupt:  # where the reactor does not run
        complain("stopped by SIGINT")
        return 4


def occupy_standard_descriptors() -> None:
    """Let descriptors 0 to 2 that are closed (C{>&-}) lead nowhere.

    Otherwise a disk or a socket would get such a number, and be written to by what is meant for
    people.
    """
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD_DESCRIPTOR:
            pass
        os.close(descriptor)
