"""Runs a command of blockmig's, and dies at a call into the kernel: no clean-up, no last words.

``python -m tests.support.dying CALL SUFFIX NUMBER before|after send|receive …``: at the NUMBERth
CALL (`rename` by its target, `unlink`, `open`) on a path that ends with SUFFIX.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from blockmig.syscalls import SystemCalls

STATUS = 86


class DyingCalls(SystemCalls):
    """The real calls, up to one."""

    def __init__(self, call: str, suffix: str, number: int, when: str) -> None:
        self._point = (call, suffix)
        self._left = number
        self._when = when

    def _pass(self, call: str, path: str, act: Callable[..., Any], *arguments: object) -> Any:
        hit = call == self._point[0] and path.endswith(self._point[1])
        self._left -= hit
        last = hit and self._left == 0
        if last and self._when == "before":
            os._exit(STATUS)
        result = act(*arguments)
        if last:
            os._exit(STATUS)
        return result

    def rename(self, before: str, after: str) -> None:  # type: ignore[override]
        self._pass("rename", after, os.rename, before, after)

    def open(self, path: str, *arguments: int) -> int:  # type: ignore[override]
        return int(self._pass("open", path, os.open, path, *arguments))

    def unlink(self, path: str) -> None:  # type: ignore[override]
        self._pass("unlink", path, os.unlink, path)


def main() -> None:
    call, suffix, number, when, *arguments = sys.argv[1:]
    from twisted.internet import reactor

    from blockmig.cli.commands import parse
    from blockmig.cli.logs import begin_logging, line_writer
    from blockmig.cli.operations import report, run_operation
    from blockmig.cli.progress import NoDisplay
    from blockmig.cli.receive_operation import ReceiveOperation
    from blockmig.cli.send_operation import SendOperation
    from blockmig.runtime import Runtime

    command, options = parse(arguments)
    system = DyingCalls(call, suffix, int(number), when)
    runtime = replace(Runtime.of(reactor), system=system)
    if command.name == "send":
        operation = SendOperation(options, runtime, NoDisplay())
    else:
        operation = ReceiveOperation(options, runtime)
        begin_logging(options, line_writer(2))
    raise SystemExit(run_operation(reactor, report(operation), operation.stop))


if __name__ == "__main__":
    main()
