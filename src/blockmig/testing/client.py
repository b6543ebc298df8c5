"""A client for tests of servers: one method for each request, one Deferred for each reply.

It asks whatever it is told to, also what a server must refuse.

Rules:

* requests go out at once, any number of them before the first reply;
* a reply with an error fails its request with an L{OSError} of that number, and the
  connection lives;
* whatever ends the connection fails all requests that wait.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ..client import ClientFactory, RequestFailed
from ..client import NBDClient as _Client
from ..nbd import ClientHandshake, Command, CommandFlag, Export, Negotiated
from ..runtime import Runtime
from .threads import synchronous


class NBDClient(_Client):
    """A client; made by L{connect_client}. Offsets and lengths are in bytes.

    What is returned by methods that ask for something fires when the reply is there. It fails with
    an L{OSError} where that has an error; otherwise with the reason for which the connection
    was lost, or the L{blockmig.nbd.ProtocolError} of the server's.

    @param export: the name of the export.
    @ivar export: what the server says of it.
    @ivar lost: whether the connection is gone.
    """

    export: Export

    def __init__(self, export: str = "") -> None:
        # No timeout is set, no file region is sent: of the runtime nothing is used.
        super().__init__(ClientHandshake(export), Runtime(Clock(), synchronous))
        self._broken: Failure | None = None

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> Deferred[None]:
        """Put C{data} there.

        @param fua: durably.
        """
        return self.ask(Command.WRITE, offset, len(data), _flags(fua=fua), data)

    def zero(
        self,
        offset: int,
        length: int,
        *,
        allocate: bool = False,
        fast: bool = False,
        fua: bool = False,
    ) -> Deferred[None]:
        """Have a range read as zeroes.

        @param allocate: keep its space.
        @param fast: only if that is faster than writing.
        @param fua: durably.
        """
        flags = _flags(fua=fua, allocate=allocate, fast=fast)
        return self.ask(Command.WRITE_ZEROES, offset, length, flags)

    def trim(self, offset: int, length: int, *, fua: bool = False) -> Deferred[None]:
        """Say that the content of a range matters no more.

        @param fua: durably.
        """
        return self.ask(Command.TRIM, offset, length, _flags(fua=fua))

    def flush(self) -> Deferred[None]:
        """Have durable what was answered until now."""
        return self.ask(Command.FLUSH)

    @property
    def lost(self) -> bool:
        """See the class."""
        return self._connection.is_gone

    def _outcome(self, result: Any) -> Any:
        if not isinstance(result, Failure):
            return result or None
        assert isinstance(result.value, RequestFailed)
        error = result.value.error
        name = errno.errorcode.get(error, str(error))
        command = Command(result.value.request.command).name
        return Failure(OSError(error, f"{command}: {name}: {os.strerror(error)}"))

    def _cancelled(self, waiting: Deferred[Any]) -> None:
        """The connection lives on."""

    def negotiated(self, negotiated: Negotiated) -> None:
        """Keep what the server says."""
        self.export = negotiated.export
        super().negotiated(negotiated)

    def explain(self, error: Exception) -> str:
        """Keep the error for those who wait."""
        self._broken = Failure(error)
        return str(error)

    def connection_failed(self, why: str) -> None:
        """They hear of the error itself."""
        assert self._broken is not None
        self._fail(self._broken)

    def connection_lost(self, why: str, reason: Failure) -> None:
        """They hear of the reason itself."""
        self._fail(reason if reason.value is not None else Failure(ConnectionDone()))


def _flags(fua: bool = False, allocate: bool = False, fast: bool = False) -> int:
    flags = CommandFlag.FUA if fua else CommandFlag(0)
    if allocate:
        flags |= CommandFlag.NO_HOLE
    if fast:
        flags |= CommandFlag.FAST_ZERO
    return int(flags)


def connect_client(endpoint: IStreamClientEndpoint, export: str = "") -> Deferred[NBDClient]:
    """Connect a client, and shake hands.

    @param endpoint: where the server is; any endpoint will do, not only one in memory.
    @param export: the name of the export.
    @return: fires with the client. Fails with what the endpoint fails with, with the reason for
        which the connection was lost, or with L{blockmig.nbd.HandshakeRefused} or
        L{blockmig.nbd.ProtocolError}.
    """
    client = NBDClient(export)
    connecting = endpoint.connect(ClientFactory(client._connection))
    return connecting.addCallback(lambda _: client.greeted()).addCallback(lambda _: client)
