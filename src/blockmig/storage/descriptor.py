"""A descriptor that is closed only when no call is using it any more.

Owns the number of an open file, from when it is opened until it is closed, and who is in the middle
of a call with it. A number that is closed is given to the next file that anybody opens: a thread
that still has it would then read, or overwrite, that file.

Rules:

* whoever makes a system call with the number does so inside a C{with} statement, so that it is
  counted;
* once it is to be closed nobody is let in any more, and the last one who leaves closes it;
* an error of close(2) is nobody's: the outcome of what was done with the file is known by then;
* to count costs no lock, since every read and write does it: appending to a list, taking the last
  item from it, and setting an attribute are atomic each, and their order does the rest. Who enters
  is counted before he looks whether it is open; who closes says so before he looks for others.
"""

from __future__ import annotations

import contextlib
import errno

from ..syscalls import SystemCalls


class Descriptor:
    """The descriptor of an open file; in a C{with} statement it is its number.

    @param name: what to call it in messages.
    @ivar number: its number; None once it is closed, or about to be.
    """

    __slots__ = ("_name", "_system", "_to_close", "_users", "number")

    def __init__(self, number: int, name: str, system: SystemCalls) -> None:
        self.number: int | None = number
        self._to_close = [number]
        self._users: list[None] = []
        self._name = name
        self._system = system

    def __enter__(self) -> int:
        self._users.append(None)
        number = self.number
        if number is None:
            self.__exit__(None, None, None)
            raise OSError(errno.EBADF, f"{self._name} was closed")
        return number

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._users.pop()
        if self.number is None:
            self._close_if_unused()

    def close(self) -> None:
        """Close it, now or when the last call with it has ended; harmless if repeated."""
        self.number = None
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._users:
            return
        try:
            number = self._to_close.pop()  # by one only, whoever else comes here at the same time
        except IndexError:
            return
        # Linux has closed it also where this fails: on a file system that is gone, or that reports
        # only now what a write has met. Whoever relies on a write has flushed, and been told then.
        with contextlib.suppress(OSError):
            self._system.close(number)
