"""The search for the server that takes over, with connections of its own (probes).

Owns when that server is looked for, and whether it was there when it was last heard of: a state
machine. Whom that concerns is up to the `relay`.

Rules:

* one probe at a time; there is none while the server is available;
* while somebody waits the server is looked for every 20 ms: that is what it costs a client that a
  process has to be started first. When nobody waits, or that has lasted for a minute, less often;
* who begins to wait has it looked for within 20 ms;
* a server that still lists the export of a migration's receiver is not the one that is looked for,
  and is told nothing, not even DISC;
* it is available only when the probe's connection is gone: a server that limits its connections
  does not count that one any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from automat import TypeMachineBuilder
from twisted.internet.interfaces import IDelayedCall

from ..nbd import ClientHandshake, Negotiated
from .upstream import Upstream, UpstreamUser

_SHORTEST: Final = 0.02
_LONGEST: Final = 0.5
_IMPATIENT: Final = 60.0
"""Seconds for which the intervals stay short while somebody waits."""


class SearchInputs(Protocol):
    """The events."""

    def look(self) -> None:
        """It is time to look."""

    def connect(self) -> None:
        """The probe is ours, and may connect."""

    def hurry(self) -> None:
        """Somebody waits for the server."""

    def found(self) -> None:
        """The probe has met the server."""

    def not_found(self) -> None:
        """The probe has not met it."""

    def vanished(self) -> None:
        """A client could not be connected to the server that was available."""

    def is_available(self) -> bool:
        """Whether the server was there when it was last heard of."""

    def stop(self) -> None:
        """It is not looked for any more."""


class SearchActions(Protocol):
    """What the machine does."""

    def make_probe(self) -> Upstream:
        """A connection that is not begun yet."""

    def connect_probe(self, probe: Upstream) -> None:
        """Connect; answer with C{found} or C{not_found}."""

    def wait(self) -> IDelayedCall:
        """Have C{look} called in a while."""

    def shorten(self, wait: IDelayedCall) -> None:
        """Have it called soon."""


def _probe(machine: SearchInputs, actions: SearchActions) -> Upstream:
    return actions.make_probe()


def _wait(machine: SearchInputs, actions: SearchActions) -> IDelayedCall:
    return actions.wait()


_builder = TypeMachineBuilder(SearchInputs, SearchActions)  # type: ignore[type-abstract]
_idle = _builder.state("idle")
"""Not begun."""
_looking = _builder.state("looking", _probe)
"""A probe is under way."""
_waiting = _builder.state("waiting", _wait)
"""The server is looked for again in a while."""
_available = _builder.state("available")
"""The server has answered."""
_stopped = _builder.state("stopped")
"""It is over."""


@_idle.upon(SearchInputs.look).to(_looking)
def _begin(machine: SearchInputs, actions: SearchActions) -> None:
    machine.connect()


@_waiting.upon(SearchInputs.look).to(_looking)
def _look_again(machine: SearchInputs, actions: SearchActions, wait: IDelayedCall) -> None:
    machine.connect()


@_looking.upon(SearchInputs.connect).loop()
def _connect(machine: SearchInputs, actions: SearchActions, probe: Upstream) -> None:
    actions.connect_probe(probe)


@_looking.upon(SearchInputs.found).to(_available)
@_looking.upon(SearchInputs.not_found).to(_waiting)
def _end_probe(machine: SearchInputs, actions: SearchActions, probe: Upstream) -> None:
    """It is gone."""


@_waiting.upon(SearchInputs.hurry).loop()
def _hurry(machine: SearchInputs, actions: SearchActions, wait: IDelayedCall) -> None:
    actions.shorten(wait)


@_idle.upon(SearchInputs.stop).to(_stopped)
@_available.upon(SearchInputs.stop).to(_stopped)
def _stop(machine: SearchInputs, actions: SearchActions) -> None:
    """Nothing is under way."""


@_looking.upon(SearchInputs.stop).to(_stopped)
def _stop_probe(machine: SearchInputs, actions: SearchActions, probe: Upstream) -> None:
    probe.abort()


@_waiting.upon(SearchInputs.stop).to(_stopped)
def _stop_waiting(machine: SearchInputs, actions: SearchActions, wait: IDelayedCall) -> None:
    wait.cancel()


_available.upon(SearchInputs.is_available).loop().returns(True)
for _state in (_idle, _looking, _waiting, _stopped):
    _state.upon(SearchInputs.is_available).loop().returns(False)
_available.upon(SearchInputs.vanished).to(_waiting).returns(None)
for _state in (_looking, _available, _stopped):
    _state.upon(SearchInputs.look).loop().returns(None)
for _state in (_idle, _looking, _available, _stopped):
    _state.upon(SearchInputs.hurry).loop().returns(None)
for _state in (_idle, _looking, _waiting, _stopped):
    _state.upon(SearchInputs.vanished).loop().returns(None)
_stopped.upon(SearchInputs.stop).loop().returns(None)

_make_search = _builder.build()


class Search:
    """The search for one server.

    @param connection: makes a connection for a user, which shakes hands as it says.
    @param connect: connects one; that may fail at once.
    @param handshake: makes the handshake of a probe.
    @param is_waited_for: whether somebody waits for the server.
    @param found: called when the server is there.
    @param not_found: called with the reason whenever it is not.
    @param reactor: the clock.
    """

    def __init__(
        self,
        connection: Callable[[UpstreamUser, ClientHandshake], Upstream],
        connect: Callable[[Upstream], None],
        handshake: Callable[[], ClientHandshake],
        *,
        is_waited_for: Callable[[], bool],
        found: Callable[[], None],
        not_found: Callable[[str], None],
        reactor: Any,
    ) -> None:
        self._connection = connection
        self._connect = connect
        self._handshake = handshake
        self._is_waited_for = is_waited_for
        self._found = found
        self._not_found = not_found
        self._reactor = reactor
        self._is_over = False
        self._delay = _SHORTEST
        self._hurried_at: float = reactor.seconds()
        self._machine: SearchInputs = _make_search(self)

    @property
    def is_available(self) -> bool:
        """Whether the server was there when it was last heard of."""
        return self._machine.is_available()

    def start(self) -> None:
        """Begin to look for it."""
        self._hurried_at = self._reactor.seconds()
        self._machine.look()

    def hurry(self) -> None:
        """Somebody begins to wait for it."""
        self._hurried_at = self._reactor.seconds()
        self._machine.hurry()

    def reached(self) -> None:
        """A client has met it: after the next failure it is looked for soon."""
        self._delay = _SHORTEST

    def vanished(self, why: str) -> None:
        """A client has not met it."""
        self._machine.vanished()
        self._not_found(why)

    def stop(self) -> None:
        """Give up looking."""
        self._is_over = True
        self._machine.stop()

    # SearchActions.

    def make_probe(self) -> Upstream:
        return self._connection(_Probe(self._probed), self._handshake())

    def connect_probe(self, probe: Upstream) -> None:
        self._connect(probe)

    def _probed(self, why: str) -> None:
        """The probe is over.

        @param why: why the server is not available; "" if it is.
        """
        if self._is_over:
            return  # its connection was closed at once, in the middle of the machine's last step
        if why:
            self._machine.not_found()
            self._not_found(why)
        else:
            self._machine.found()
            self._found()

    def wait(self) -> IDelayedCall:
        waited = self._reactor.seconds() - self._hurried_at
        if self._is_waited_for() and waited < _IMPATIENT:
            self._delay = _SHORTEST
        call: IDelayedCall = self._reactor.callLater(self._delay, self._machine.look)
        self._delay = min(2 * self._delay, _LONGEST)
        return call

    def shorten(self, wait: IDelayedCall) -> None:
        self._delay = _SHORTEST
        if wait.getTime() > self._reactor.seconds() + _SHORTEST:
            wait.reset(_SHORTEST)


class _Probe:
    """Finds out whether the server is there.

    @param done: called at the end, with the reason why it is not; "" if it is.
    """

    def __init__(self, done: Callable[[str], None]) -> None:
        self._done = done
        self._is_server = False
        self._is_receiver = False

    def upstream_connected(self, upstream: Upstream, negotiated: Negotiated | None) -> None:
        """A server is there. If it is still the receiver, say nothing to it, not even DISC."""
        assert negotiated is not None
        if negotiated.listed:
            self._is_receiver = True
            upstream.abort()
        else:
            self._is_server = True
            upstream.disconnect()

    def upstream_received(self, data: bytes) -> None:
        """Nothing was requested."""

    def upstream_drained(self) -> None:
        """There is nothing more to send."""

    def upstream_lost(self, why: str) -> None:
        """Report only now (see the rules)."""
        if self._is_receiver:
            why = "the migration's receiver still has the disk"
        self._done("" if self._is_server else why or "it closed the connection")
