"""Clients whose disk another server serves now, passed on to it so that they see only a pause.

Owns the wait for that server, and the connections to it: one for each client. A client's own end is
a `ServerConnection` that was passed on; it goes on sending what we owe the client, and everything
after that comes from the other server.

Rules:

* nobody is passed on before a server has answered that is not the migration's receiver any more:
  the name of the receiver's side export, where one is known, is not listed;
* a client that has negotiated with us goes on only where everything that it was told holds: what is
  less there costs its connection, so that it may connect anew. Nothing else of its stream is
  changed;
* everything that it sent and we have not answered goes first, as it came, and each byte once: a
  WRITE that was taken off the wire in part is made whole again, from the disk and from memory;
* a client that connects later is passed on from its first byte, and is only waited with until then;
* a client that has hung up while it waited is done with, and so is what it had asked for: it may
  already be repeating that on another connection, and must not be overtaken by itself;
* what one side does not take is not read from the other: one message of the reactor's, and the rest
  of an unanswered one, is all that is ever kept;
* a client that says no more may still listen. A server that says no more is gone, since there is
  nothing that it could be told any more; then its client's connection is closed too;
* a connection that does not come about has cost nothing: it is tried again, for ever.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..client import ClientConnection, ClientFactory, ClientUser, Destination
from ..nbd import (
    REQUEST,
    REQUEST_MAGIC,
    ClientHandshake,
    Command,
    Negotiated,
    TransmissionFlag,
)
from ..runtime import Runtime
from ..transport import (
    FileRegion,
    has_hung_up,
    is_plain_socket,
)
from .connection import ServerConnection

_log = Logger()

_FIRST_DELAY: Final = 0.02
_LONGEST_DELAY: Final = 0.5
_REPORT: Final = 60.0
_PATIENCE: Final = 10.0
_GOODBYE: Final = 1.0


class _Near(typing.Protocol):
    """Whoever has a connection to the other server made, and is told of what happens to it."""

    def met(self, far: _Far, negotiated: Negotiated | None) -> None:
        """Connected; with a handshake, if there was to be one."""

    def answered(self, data: bytes) -> None:
        """The server sent this."""

    def far_drained(self) -> None:
        """The server has taken all there was for it."""

    def far_lost(self, why: str) -> None:
        """The connection is gone, or did not come about; told once."""


class _Far(ClientUser):
    """One connection to the other server.

    @param handshake: what to begin with; None for nothing.
    """

    def __init__(self, near: _Near, handshake: ClientHandshake | None, runtime: Runtime) -> None:
        self._near = near
        self._greets = handshake is None
        self._connection = ClientConnection(self, handshake, runtime)
        self._met = False
        self._lost = False
        self._connecting: Deferred[Any] | None = None

    @property
    def why(self) -> str:
        """Why we gave it up; empty if we did not."""
        return self._connection.why

    def connect(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect, and shake hands, with patience."""
        self._connection.wait(_PATIENCE, f"no answer in {_PATIENCE:g} s")
        self._connecting = maybeDeferred(endpoint.connect, ClientFactory(self._connection))
        self._connecting.addCallbacks(lambda _: None, self._gone)

    def _gone(self, reason: Failure) -> None:
        self._connection.wait_no_more()
        if not self._lost:
            self._lost = True
            self._near.far_lost(self.why or reason.getErrorMessage())

    # ClientUser.

    def connection_made(self) -> None:
        """The server speaks first; to the client, if that one was not greeted."""
        if self._lost:
            self._connection.abort()  # given up, by an endpoint that could not take it back
        elif self._greets:
            self._meet(None)

    def negotiated(self, negotiated: Negotiated) -> None:
        """It is there."""
        self._meet(negotiated)

    def _meet(self, negotiated: Negotiated | None) -> None:
        self._connection.wait_no_more()
        self._met = True
        self._near.met(self, negotiated)

    def received(self, data: bytes) -> None:
        """It goes on to the client."""
        if self._met:
            self._near.answered(data)

    def drained(self) -> None:
        """There may be more."""
        if self._met and not self._lost:
            self._near.far_drained()

    def sending_failed(self, error: OSError) -> None:
        """What the client had sent cannot be had any more."""
        self._connection.fail(f"reading the disk failed: {error}")

    def connection_failed(self, why: str) -> None:
        """We gave it up, perhaps before there was one."""
        if self._connecting is not None and self._connection.transport is None:
            self._connecting.cancel()

    def connection_gone(self, reason: Failure) -> None:
        """It is."""
        self._gone(reason)

    # What is done with it.

    @property
    def waiting(self) -> bool:
        """Whether the server has not taken all that was sent."""
        return self._connection.outgoing.waiting

    def send(self, items: Sequence[bytes | FileRegion]) -> None:
        """Send what is here to stay."""
        self._connection.outgoing.send(items)

    def send_view(self, data: bytes | memoryview) -> None:
        """Send what may not last."""
        self._connection.outgoing.send_view(data)

    def pause(self) -> None:
        """Read nothing more until L{resume}."""
        if not self._lost:
            self._connection.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if not self._lost:
            self._connection.transport.resumeProducing()

    def finish(self) -> None:
        """Tell the server that nothing more comes, once all was sent."""
        if self._lost:
            return
        if is_plain_socket(self._connection.transport):
            self._connection.transport.loseWriteConnection()
        else:
            self.close()

    def disconnect(self) -> None:
        """Take leave of the server, which is to close."""
        self.send([REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0)])
        self._connection.wait(_GOODBYE, "")

    def close(self) -> None:
        """Close when all was sent, or after a while."""
        if not self._lost:
            self._connection.wait(_PATIENCE, "")
            self._connection.transport.loseConnection()

    def abort(self) -> None:
        """Close at once, or do not connect any more."""
        self._connection.abort()
        if self._connection.transport is None and self._connecting is not None:
            self._connecting.cancel()


class _Probe:
    """A look at whether the other server is there."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._is_there = False
        self._receives = False

    def met(self, far: _Far, negotiated: Negotiated | None) -> None:
        """Somebody is there, who may still be the receiver: to that one no word is said."""
        assert negotiated is not None
        if negotiated.listed:
            self._receives = True
            far.abort()
        else:
            self._is_there = True
            far.disconnect()

    def answered(self, data: bytes) -> None:
        """Nothing was asked."""

    def far_drained(self) -> None:
        """It has."""

    def far_lost(self, why: str) -> None:
        """Only now: where connections are counted, this one counts no more."""
        if self._receives:
            why = "the migration's receiver still has the disk"
        self._relay.probed("" if self._is_there else why or "it closed the connection")


class _Passage:
    """One client, passed on.

    @param client: its connection.
    """

    def __init__(self, relay: Relay, client: ServerConnection) -> None:
        self._relay = relay
        self._client = client
        self._left: list[bytes | FileRegion] = []
        self._far: _Far | None = None
        self._joined = False
        self._finished = False
        self._ended = False

    # From the client.

    def begin(self, unanswered: list[bytes | FileRegion] | None) -> None:
        """Its connection was given up to us."""
        self._relay.add(self)
        if unanswered is None:
            self._close("a WRITE of it that is under way has failed here")
            return
        self._left = unanswered
        if self._client.negotiated is None:
            # It waits for a greeting, so that all there is to be read is that it gave up.
            self._client.resume_reading()
        self.connect()

    def received(self, data: bytes | memoryview) -> None:
        """To the server; or to be kept for it, but then only this."""
        if self._ended:
            return
        if self._joined:
            assert self._far is not None
            self._far.send_view(data)
            if self._far.waiting:
                self._client.pause_reading()
        else:
            self._left.append(bytes(data))
            self._client.pause_reading()

    def finished(self) -> None:
        """It sends no more."""
        self._finished = True
        if self._ended:
            return
        if self._joined:
            assert self._far is not None
            self._far.finish()
        elif not self._left:
            self._close("")

    def drained(self) -> None:
        """It has taken everything: there may be more."""
        if self._joined and self._far is not None:
            self._far.resume()

    def lost(self, reason: Failure) -> None:
        """It has gone. What it sent before it closed in order still reaches the server."""
        self._ended = True
        self._left = []
        self._relay.remove(self)
        if self._far is None:
            return
        if self._joined and reason.check(ConnectionDone):
            self._far.close()
        else:
            self._far.abort()

    def _close(self, why: str) -> None:
        self._ended = True
        self._left = []
        if why:
            _log.warn(
                "{peer}: cannot be passed on, and is closed: {why}",
                event="not-passed-on",
                peer=self._client.peer,
                why=why,
            )
        if self._far is not None and not self._joined:
            self._far.abort()
        self._client.close()

    def give_up_if_gone(self) -> None:
        """The client may not have had the patience."""
        if not self._joined and not self._ended and has_hung_up(self._client.transport):
            self._close("it has hung up")

    # From the server, and what leads there.

    def connect(self) -> None:
        """Connect to the server, unless that is done, or too early."""
        if self._far is None and not self._ended and self._relay.is_there:
            self._far = self._relay.make_far(self, self._client.negotiated)
            self._relay.connect(self._far)

    def met(self, far: _Far, negotiated: Negotiated | None) -> None:
        """Connected: the client may go on, if it is what the client was told."""
        told = self._client.negotiated
        if told is not None and negotiated is not None:
            if negotiated.listed:
                far.abort()
                return
            hung_up = has_hung_up(self._client.transport)
            why = "it has hung up" if hung_up else what_is_less(told, negotiated)
            if why:
                self._far = None
                far.disconnect()
                self._close(why)
                return
        self._joined = True
        self._relay.joined()
        left, self._left = self._left, []
        far.send(left)
        if self._finished:
            far.finish()
        if far.waiting:
            self._client.pause_reading()
        else:
            self._client.resume_reading()

    def answered(self, data: bytes) -> None:
        """To the client."""
        if self._joined and not self._ended and not self._client.answer(data):
            assert self._far is not None
            self._far.pause()

    def far_drained(self) -> None:
        """It has taken everything: there may be more."""
        if not self._ended:
            self._client.resume_reading()

    def far_lost(self, why: str) -> None:
        """Before they were joined nothing is lost; after that the client's connection is."""
        far, self._far = self._far, None
        if self._ended:
            return
        if self._joined:
            self._close(far.why if far is not None else "")
        else:
            self._relay.missed(why)

    def stop(self) -> None:
        """Close."""
        if not self._ended:
            self._close("")


class Relay:
    """Passes clients on to the server that has their disk now.

    Give it to L{Server.relay <blockmig.server.Server.relay>}.

    @param destination: where that server is, or will be, and the name of the disk there.
    @param receiver_export: the name of another export, which only the migration's receiver lists;
        None if there is no such.
    @param runtime: what the outside world is; None for the real one.
    @ivar is_there: it has answered.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        receiver_export: str | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._runtime = runtime = runtime or Runtime.of()
        self.is_there = False
        self._endpoint = destination.endpoint
        self._export = destination.export
        self._receiver_exports = () if receiver_export is None else (receiver_export,)
        self._reactor = runtime.reactor
        self._passages: dict[_Passage, None] = {}
        self._delay = _FIRST_DELAY
        self._reported = float("-inf")
        self._said_so = False
        self._probe: _Far | None = None
        self._next: IDelayedCall | None = None
        self._stopped = False

    def start(self) -> None:
        """Look for the server."""
        self._look()

    def pass_on(self, client: ServerConnection) -> None:
        """Pass a client on that is held and idle, or was not greeted; now, or when that can be."""
        client.pass_on(_Passage(self, client))

    def stop(self) -> None:
        """Give up: close every client, and look for nobody any more."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._probe is not None:
            self._probe.abort()
        for passage in list(self._passages):
            passage.stop()

    # For passages and probes.

    def make_far(self, passage: _Passage, told: Negotiated | None) -> _Far:
        """A connection for a client: for one who was told this, or was not greeted."""
        handshake: ClientHandshake | None = None
        if told is not None:
            handshake = ClientHandshake(
                self._export,
                self._receiver_exports,
                structured=told.structured,
                allocation=told.allocation,
            )
        return _Far(passage, handshake, self._runtime)

    def connect(self, far: _Far) -> None:
        """Have it connect; it may fail at once."""
        far.connect(self._endpoint)

    def add(self, passage: _Passage) -> None:
        """One more."""
        self._passages[passage] = None

    def remove(self, passage: _Passage) -> None:
        """One less."""
        self._passages.pop(passage, None)

    def joined(self) -> None:
        """Somebody got through."""
        self._delay = _FIRST_DELAY

    def missed(self, why: str) -> None:
        """The server is not there, or not yet; or somebody did not get through to it."""
        self.is_there = False
        if self._stopped:
            return
        # Those who wait are not read from, so that nobody else notices.
        for passage in list(self._passages):
            passage.give_up_if_gone()
        now = self._reactor.seconds()
        if now - self._reported >= _REPORT:
            self._reported = now
            self._said_so = False
            _log.info(
                "the server that takes over does not answer yet ({why}); trying again",
                event="not-there-yet",
                why=why,
            )
        if self._next is None and self._probe is None:
            self._next = self._reactor.callLater(self._delay, self._look)
            self._delay = min(2 * self._delay, _LONGEST_DELAY)

    def probed(self, why: str) -> None:
        """The probe is over.

        @param why: why the server is not there; empty if it is.
        """
        self._probe = None
        if why:
            self.missed(why)
        elif not self._stopped:
            self._found()

    def _found(self) -> None:
        self.is_there = True
        if not self._said_so:
            self._said_so = True
            _log.info(
                "the server that takes over answers; passing {clients} client(s) on",
                event="passing-on",
                clients=len(self._passages),
            )
        for passage in list(self._passages):
            passage.connect()

    def _look(self) -> None:
        self._next = None
        handshake = ClientHandshake(self._export, self._receiver_exports)
        self._probe = _Far(_Probe(self), handshake, self._runtime)
        self.connect(self._probe)


def what_is_less(told: Negotiated, there: Negotiated) -> str:
    """What a client was told that does not hold at another server; nothing if all does."""
    ours, theirs = told.export, there.export
    if theirs.size != ours.size:
        return f"the disk has {theirs.size} bytes there, and {ours.size} here"
    if theirs.read_only and not ours.read_only:
        return "it may only be read there"
    lacking = int(ours.flags) & ~int(theirs.flags) & ~int(TransmissionFlag.READ_ONLY)
    if lacking:
        names = ", ".join(str(flag.name) for flag in TransmissionFlag(lacking))
        return f"{names} is not offered there"
    if theirs.minimum_block > ours.minimum_block:
        return f"blocks have at least {theirs.minimum_block} bytes there"
    if theirs.maximum_payload < ours.maximum_payload:
        return f"a request has at most {theirs.maximum_payload} bytes there"
    if told.structured and not there.structured:
        return "there are no structured replies there"
    if told.allocation and not there.allocation:
        return "base:allocation is not told there, or not by the same number"
    return ""
