"""A handshake as a generator that asks for exact numbers of bytes.

A handshake is a dialogue of small, fixed steps. `Conversation` lets a subclass write it as one
generator, in the order of the protocol document: ``piece = yield count`` means "the next `count`
bytes from the peer". The generator's position is the state of the dialogue, so no table of states
has to be kept in step with it.

Rules:

* the generator receives exactly the bytes that it asked for, however they were split on the way;
* while there is much to be sent already, nothing more of what the peer has sent is looked at
  (`stalled`);
* bytes after its end belong to the next phase, and are kept for it unchanged;
* an exception in the generator ends the conversation; further bytes are then ignored.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar

Result = TypeVar("Result")

Steps = Generator[int, bytes, Result]
"""A conversation's generator: it yields byte counts, is sent bytes, and returns the result."""

_SKIP_AT_ONCE = 65536
_MOST_TO_SEND = 65536


class Conversation(Generic[Result]):
    """The driver of one handshake; sans-IO."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._to_send = bytearray()
        self._result: Result | None = None
        self._steps: Steps[Result] = self._converse()
        self._wanted: int | None = next(self._steps)

    def _converse(self) -> Steps[Result]:
        """The dialogue; subclasses implement it."""
        raise NotImplementedError

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer.

        @raise ProtocolError: the dialogue cannot continue.
        """
        self._received += data
        while (
            self._wanted is not None
            and len(self._received) >= self._wanted
            and len(self._to_send) < _MOST_TO_SEND
        ):
            piece = bytes(self._received[: self._wanted])
            del self._received[: self._wanted]
            try:
                self._wanted = self._steps.send(piece)
            except StopIteration as end:
                self._wanted = None
                self._result = end.value
            except BaseException:
                self._wanted = None
                self._received.clear()
                raise

    @property
    def stalled(self) -> bool:
        """Whether the dialogue can go on with what was received, once what is due was sent: call
        L{receive_data} then, with nothing more if there is nothing."""
        return self._wanted is not None and len(self._received) >= self._wanted

    def next_event(self) -> Result | None:
        """The result of the dialogue, returned once; None before and after that."""
        result, self._result = self._result, None
        return result

    def data_to_send(self) -> bytes:
        """The bytes to send to the peer now; each is returned once."""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    def trailing_data(self) -> bytes:
        """The bytes that came after the dialogue's end, for the next phase; returned once."""
        data = bytes(self._received)
        self._received.clear()
        return data

    def _skip(self, count: int) -> Steps[None]:
        """Read and discard C{count} bytes, in memory that does not grow with C{count}."""
        while count:
            piece = yield min(count, _SKIP_AT_ONCE)
            count -= len(piece)
