"""Where the messages of one connection end, and what they are called."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Generator, Iterator

from blockmig.migration.handoff.message import MESSAGE_SIZE, BadMessage, decode_message
from blockmig.nbd import Command, Option, OptionReply, Request

Steps = Generator[tuple[int, str | None], bytes, None]
"""Asks for so many bytes, and gives the name of the message that the last ones completed."""


class Dialogue:
    """The messages on one connection, in both directions.

    @ivar export: C{M} for the main export, C{H} for the side export, C{?} before it is known.
    """

    def __init__(self) -> None:
        self.export = "?"
        self._requests: dict[int, Request] = {}
        self.from_client = _Stream(self._client())
        self.from_server = _Stream(self._server())

    def _client(self) -> Steps:
        name: str | None = None
        yield 4, None
        name, option = "flags", 0
        while option not in (Option.GO, Option.EXPORT_NAME):
            _, option, length = struct.unpack("!QII", (yield 16, name))
            data = (yield length, None) if length else b""
            name = Option(option).name
        self.export = "H" if b".handoff" in data else "M"
        while True:
            request = Request(*struct.unpack("!4xHHQQI", (yield 28, name)))
            self._requests[request.cookie] = request
            name = Command(request.command).name
            if request.command == Command.WRITE:
                name = self._named("announce", (yield request.length, name), name)

    def _server(self) -> Steps:
        yield 18, None
        name: str | None = "greeting"
        while True:
            _, option, reply, length = struct.unpack("!QIII", (yield 20, name))
            if length:
                yield length, None
            name = f"{Option(option).name} answer"
            if option == Option.GO and reply == OptionReply.ACK:
                break
        name = "GO done"
        while True:
            error, cookie = struct.unpack("!4xIQ", (yield 16, name))
            request = self._requests.pop(cookie)
            command = Command(request.command).name
            name = f"{command} refused" if error else f"{command} reply"
            if request.command == Command.READ and not error:
                name = self._named("state", (yield request.length, name), name)

    @staticmethod
    def _named(what: str, payload: bytes, otherwise: str) -> str:
        if len(payload) == MESSAGE_SIZE:
            with contextlib.suppress(BadMessage):
                return f"{what} {decode_message(payload).phase}"
        return f"{otherwise} payload"


class _Stream:
    """One direction, cut where messages end."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._left, _ = next(steps)
        self._seen = b""

    def cut(self, data: bytes) -> Iterator[tuple[bytes, str | None]]:
        """Pieces of C{data}, each with the name of the message that it completes, if it does."""
        while data:
            piece, data = data[: self._left], data[self._left :]
            self._seen += piece
            yield piece, self._passed(len(piece))

    def moved(self, count: int) -> str | None:
        """Bytes were transferred that we have not seen."""
        return self._passed(count)

    def _passed(self, count: int) -> str | None:
        self._left -= count
        if self._left:
            return None
        seen, self._seen = self._seen, b""
        self._left, name = self._steps.send(seen)
        return name
