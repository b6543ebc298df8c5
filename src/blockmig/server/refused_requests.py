"""The log of requests that the protocol forbids: clients seldom say what they were refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from ..nbd import Export, Request, describe_refusal
from .limited_log import LimitedLog

_log = Logger()

_MOST_KINDS: Final = 64
"""Clients choose the kinds, so there must not be too many of them."""


class RefusedRequests:
    """Logs the requests that a listener's clients are refused: a line a minute for each kind.

    @param seconds: returns the time.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._kinds: dict[tuple[int, str], LimitedLog] = {}

    def note(self, peer: str, request: Request, export: Export) -> None:
        """C{peer} was refused C{request}."""
        why = describe_refusal(request, export)
        kind = (request.command, why.kind)
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = (-1, "")
        lines = self._kinds.setdefault(kind, LimitedLog(self._seconds, 1))
        if lines.has_room():
            _log.warn(
                "{peer}: refused a {command} of {length} bytes at {offset}: {why}{others}",
                event="request-refused",
                peer=peer,
                command=why.command,
                length=request.length,
                offset=request.offset,
                why=why.words,
                others=lines.others(),
            )
