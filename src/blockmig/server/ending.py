"""How a server ends: its clients are served to the last request, closed, or forwarded.

Owns the order of the steps, as a declared machine, and the clients' last moments. The disk, and
when the server is stopped or handed over, are others'.

Rules:

* no client is accepted once the server is stopped or handed over, but for one that is forwarded;
* a mirror is called off before the clients are refused anything, and its end is waited for: if it
  was too late for that, the disk is handed over;
* stopped: requests in progress are finished, new ones are refused, each client is closed once it
  has none left, and the disk is flushed last. Clients that are held may be another server's by
  now: they are closed with their requests unanswered;
* handed over: clients are closed with their last requests unanswered, and nothing is flushed;
* whichever it is, clients have 10 s to take their replies: then they are aborted;
* relayed: clients are forwarded, those too that come later. When the last of them has left the
  server lingers: whoever comes back meanwhile is forwarded, and it ends when nobody does. Where it
  did not at once, one reset behind it would cost its clients the only address that they know;
* the end is reached when no client is left, and no thread at work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol

from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..runtime import BoundedThreads
from .clients import Clients
from .relay import Relay

_log = Logger()

_DRAIN_TIMEOUT: Final = 10.0


class ServedMirror(Protocol):
    """A mirror of the server, as far as the server knows it."""

    def stop(self, why: str) -> None:
        """End it, unless it is too late."""

    def complete(self) -> Deferred[Any]:
        """Fires, or fails, when it has ended."""


class EndingInputs(Protocol):
    """The events."""

    def stop(self, why: str) -> None:
        """The server is to end."""

    def mirror_ended(self) -> None:
        """No mirror is running (any more)."""

    def hand_over(self) -> None:
        """Another server serves the disk now."""

    def relay(self, relay: Relay) -> None:
        """Another server serves the disk now, and clients are to reach it through this one."""

    def left(self) -> None:
        """The last client that was forwarded has left."""

    def came(self) -> None:
        """A client has come that is to be forwarded."""

    def lingered(self) -> None:
        """Nobody has come for long enough."""

    def lingers_until(self) -> float | None:
        """Until when it lingers, by the reactor's clock; None if it does not, or for ever."""


class EndingActions(Protocol):
    """What the machine does."""

    def call_off(self, why: str) -> None:
        """Stop the mirror, if there is one; answer with C{mirror_ended}."""

    def drain(self, why: str) -> None:
        """Finish what clients have requested, and flush the disk."""

    def close(self) -> None:
        """Close the clients."""

    def forward(self, relay: Relay) -> None:
        """Forward the clients; answer with C{left}."""

    def linger(self) -> Lingering:
        """Have C{lingered} called in time."""

    def await_clients(self) -> None:
        """Answer with C{came} when somebody comes, or with C{lingered} if nobody is to."""

    def await_leaving(self) -> None:
        """Answer with C{left} when nobody is left."""

    def close_forwarded(self) -> None:
        """Close the clients that are forwarded; answer with C{left}."""

    def finish(self) -> None:
        """No client is left."""


def _why(machine: EndingInputs, actions: EndingActions, why: str) -> str:
    return why


class Lingering:
    """Somebody may come back.

    @param call: of what ends it; None where there is no such moment.
    """

    def __init__(self, call: IDelayedCall | None) -> None:
        self._call = call

    @property
    def until(self) -> float | None:
        """When it ends, by the reactor's clock."""
        return self._call.getTime() if self._call is not None else None

    def end(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()


def _linger(machine: EndingInputs, actions: EndingActions) -> Lingering:
    return actions.linger()


_builder = TypeMachineBuilder(EndingInputs, EndingActions)  # type: ignore[type-abstract]
_serving = _builder.state("serving")
"""Clients are served, or held."""
_calling_off = _builder.state("calling off", _why)
"""The server was stopped: the end of its mirror is waited for."""
_relaying = _builder.state("relaying")
"""Clients are forwarded."""
_lingering = _builder.state("lingering", _linger)
"""No client is left to be forwarded; those that come back in time are."""
_draining = _builder.state("draining")
"""The last requests are finished; the disk is flushed after that."""
_closing = _builder.state("closing")
"""The disk was handed over, and clients are closed."""
_leaving = _builder.state("leaving")
"""Clients that were forwarded are closed."""


@_serving.upon(EndingInputs.stop).to(_calling_off)
def _call_off(machine: EndingInputs, actions: EndingActions, why: str) -> None:
    actions.call_off(why)


@_calling_off.upon(EndingInputs.mirror_ended).to(_draining)
def _drain(machine: EndingInputs, actions: EndingActions, why: str) -> None:
    actions.drain(why)


@_serving.upon(EndingInputs.hand_over).to(_closing)
def _close(machine: EndingInputs, actions: EndingActions) -> None:
    actions.close()


@_calling_off.upon(EndingInputs.hand_over).to(_closing)
def _close_stopped(machine: EndingInputs, actions: EndingActions, why: str) -> None:
    actions.close()


@_calling_off.upon(EndingInputs.relay).to(_closing)
def _close_instead(machine: EndingInputs, actions: EndingActions, why: str, relay: Relay) -> None:
    actions.close()


@_serving.upon(EndingInputs.relay).to(_relaying)
def _forward(machine: EndingInputs, actions: EndingActions, relay: Relay) -> None:
    actions.forward(relay)


@_relaying.upon(EndingInputs.stop).to(_leaving)
def _close_forwarded(machine: EndingInputs, actions: EndingActions, why: str) -> None:
    actions.close_forwarded()


@_relaying.upon(EndingInputs.hand_over).to(_leaving)
def _close_forwarded_too(machine: EndingInputs, actions: EndingActions) -> None:
    actions.close_forwarded()


@_relaying.upon(EndingInputs.left).to(_lingering)
def _begin_to_linger(machine: EndingInputs, actions: EndingActions) -> None:
    actions.await_clients()


@_lingering.upon(EndingInputs.came).to(_relaying)
def _go_on(machine: EndingInputs, actions: EndingActions, lingering: Lingering) -> None:
    lingering.end()
    actions.await_leaving()


@_lingering.upon(EndingInputs.stop).to(_closing)
def _stop_lingering(
    machine: EndingInputs, actions: EndingActions, lingering: Lingering, why: str
) -> None:
    lingering.end()
    actions.finish()


@_lingering.upon(EndingInputs.hand_over).to(_closing)
@_lingering.upon(EndingInputs.lingered).to(_closing)
def _end_lingering(machine: EndingInputs, actions: EndingActions, lingering: Lingering) -> None:
    lingering.end()
    actions.finish()


@_lingering.upon(EndingInputs.lingers_until).loop()
def _lingers_until(
    machine: EndingInputs, actions: EndingActions, lingering: Lingering
) -> float | None:
    return lingering.until


@_leaving.upon(EndingInputs.left).to(_closing)
def _finish(machine: EndingInputs, actions: EndingActions) -> None:
    actions.finish()


_serving.upon(EndingInputs.mirror_ended).loop().returns(None)
_relaying.upon(EndingInputs.mirror_ended).loop().returns(None)
_relaying.upon(EndingInputs.relay).loop().returns(None)
_calling_off.upon(EndingInputs.stop).loop().returns(None)
_serving.upon(EndingInputs.left).loop().returns(None)
_calling_off.upon(EndingInputs.left).loop().returns(None)
for _state in (_draining, _closing, _leaving):
    _state.upon(EndingInputs.stop).loop().returns(None)
    _state.upon(EndingInputs.mirror_ended).loop().returns(None)
    _state.upon(EndingInputs.hand_over).loop().returns(None)
    _state.upon(EndingInputs.relay).loop().returns(None)
for _state in (_draining, _closing):
    _state.upon(EndingInputs.left).loop().returns(None)
_lingering.upon(EndingInputs.left).loop().returns(None)
_lingering.upon(EndingInputs.mirror_ended).loop().returns(None)
_lingering.upon(EndingInputs.relay).loop().returns(None)
_calling_off.upon(EndingInputs.came).loop().returns(None)
_calling_off.upon(EndingInputs.lingered).loop().returns(None)
_calling_off.upon(EndingInputs.lingers_until).loop().returns(None)
for _state in (_serving, _relaying, _draining, _closing, _leaving):
    _state.upon(EndingInputs.came).loop().returns(None)
    _state.upon(EndingInputs.lingered).loop().returns(None)
    _state.upon(EndingInputs.lingers_until).loop().returns(None)

_make_ending = _builder.build()


class Ending:
    """The end of one server.

    @param clients: its connections.
    @param threads: which work on its disk.
    @param reactor: the clock.
    @param hold: holds the clients; fires when none of their requests is being carried out.
    @param held_at: when they were held, by the reactor's clock; None if they are not.
    @param flush: makes the disk durable; None where nothing can have changed it.
    @param disk_unused: called when clients are forwarded, and nothing needs the disk any more.
    @param ended: called when nothing is left to do, with the failure of the flush if it failed.
    @ivar machine: takes the inputs.
    @ivar mirror: the mirror that is running, if there is one.
    @ivar relay: by which clients are forwarded; None as long as they are not.
    @ivar begun: the server was stopped or handed over, and accepts no client any more.
    @ivar flushing: the last flush has begun.
    """

    def __init__(
        self,
        clients: Clients,
        threads: BoundedThreads,
        reactor: Any,
        *,
        hold: Callable[[], Deferred[None]],
        held_at: Callable[[], float | None],
        flush: Callable[[], Deferred[None]] | None,
        disk_unused: Callable[[], None],
        ended: Callable[[Failure | None], None],
    ) -> None:
        self.mirror: ServedMirror | None = None
        self.relay: Relay | None = None
        self.begun = False
        self.flushing = False
        self._clients = clients
        self._threads = threads
        self._reactor = reactor
        self._hold = hold
        self._held_at = held_at
        self._flush = flush
        self._disk_unused = disk_unused
        self._ended = ended
        self._drain_timeout: IDelayedCall | None = None
        self.machine: EndingInputs = _make_ending(self)

    # EndingActions.

    def call_off(self, why: str) -> None:
        self.begun = True
        mirror = self.mirror
        if mirror is None:
            self.machine.mirror_ended()
        else:
            mirror.complete().addBoth(lambda _: self.machine.mirror_ended())
            mirror.stop(why or "the server is stopped")

    def drain(self, why: str) -> None:
        self._limit_drain()
        if why:
            _log.info(
                "{why}: finishing the requests of {clients} client(s)",
                event="stopping",
                why=why,
                clients=len(self._clients),
            )
        held = self._held_at() is not None
        for client in self._clients:
            # Held clients may be another server's by now: none of their requests is answered here.
            client.close() if held else client.drain()
        self._run(self._end(self._flush))

    def close(self) -> None:
        self.begun = True
        self._limit_drain()
        self._close_clients()
        self.finish()

    def forward(self, relay: Relay) -> None:
        self.relay = relay
        held = self._hold()
        relay.start(self._held_at())
        self._run(self._forward_clients(relay, held))

    def linger(self) -> Lingering:
        seconds = self._patience
        if not 0 < seconds < math.inf:
            return Lingering(None)
        return Lingering(self._reactor.callLater(seconds, self.machine.lingered))

    @property
    def _patience(self) -> float:
        """Seconds for which somebody may come."""
        assert self.relay is not None
        awaits_first = self.relay.awaits_first and not self._clients.count
        return math.inf if awaits_first else self.relay.linger

    def await_clients(self) -> None:
        if self._patience:
            self._clients.one_comes().addCallback(lambda _: self.machine.came())
        else:
            self.machine.lingered()

    def await_leaving(self) -> None:
        self._clients.all_gone().addCallback(lambda _: self.machine.left())

    def close_forwarded(self) -> None:
        self.begun = True
        self._limit_drain()
        assert self.relay is not None
        self.relay.stop()
        self._close_clients()

    def finish(self) -> None:
        self.begun = True
        if self.relay is not None:
            self.relay.stop()
        self._run(self._end())

    # What takes time.

    def _run(self, coroutine: Any) -> None:
        Deferred.fromCoroutine(coroutine).addErrback(_bug)

    async def _forward_clients(self, relay: Relay, held: Deferred[None]) -> None:
        await held
        for client in self._clients:
            if client.negotiated is not None:
                relay.forward(client)
        relay.disk_unused().addCallback(lambda _: self._disk_unused())
        self.await_leaving()

    async def _end(self, flush: Callable[[], Deferred[None]] | None = None) -> None:
        """Wait until no client is left and no thread at work, then flush."""
        await self._clients.all_gone()
        await self._threads.idle()
        if self.relay is not None:
            await self.relay.idle()
        if self._drain_timeout is not None and self._drain_timeout.active():
            self._drain_timeout.cancel()
        outcome = None
        try:
            if flush is not None:
                self.flushing = True
                await flush()
        except GeneratorExit:
            raise
        except BaseException:  # whatever it is must reach whoever waits, too
            outcome = Failure()
        await self._threads.idle()  # somebody may have asked for one more flush meanwhile
        self._ended(outcome)

    def _close_clients(self) -> None:
        for client in self._clients:
            client.close()

    def _limit_drain(self) -> None:
        self._drain_timeout = self._reactor.callLater(_DRAIN_TIMEOUT, self._abort_clients)

    def _abort_clients(self) -> None:
        """The clients had 10 s to take their replies and to finish their requests."""
        for client in self._clients:
            client.abort()


def _bug(failure: Failure) -> None:
    _log.failure("while stopping", failure=failure)
