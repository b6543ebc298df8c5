"""Notices that standard input has closed: whoever started this command has gone.

What is read is thrown away. The descriptor stays as it is, since it may be shared with a shell.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

_PIECE: Final = 4096


@implementer(IReadDescriptor)
class StandardInput:
    """Calls C{closed} once, when the descriptor has come to its end.

    @param descriptor: 0, but in tests.
    """

    def __init__(self, reactor: Any, closed: Callable[[], None], descriptor: int = 0) -> None:
        self._reactor = reactor
        self._closed = closed
        self._descriptor = descriptor
        reactor.addReader(self)

    def logPrefix(self) -> str:
        return "standard input"

    def fileno(self) -> int:
        return self._descriptor

    def doRead(self) -> None:
        try:
            piece = os.read(self._descriptor, _PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self.stop()
            self._closed()

    def connectionLost(self, reason: Failure) -> None:
        self.stop()
        self._closed()

    def stop(self) -> None:
        """Look no more."""
        self._reactor.removeReader(self)
