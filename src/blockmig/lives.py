"""The life of an object that embedders start and stop: made, running, stopping, ended.

Owns the order of these states, the same for a Sender, a Receiver, a Server and a Mirror, and the
outcome, for everybody who waits for it. What is done in a state is the object's.

Rules:

* it is started once. A second start is refused (`InUse`), whatever became of the first;
* it is stopped once: whether that came before the start, in the middle, or after the end, every
  other stop changes nothing. One that was stopped before it was started is never begun;
* it ends once, with one outcome, for which any number of callers may wait, at any time. Who cancels
  such a wait only stops waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from automat import TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.python.failure import Failure

from .errors import InUse

T = TypeVar("T")
U = TypeVar("U")


class OneShot(Generic[T]):
    """A result that any number of callers may wait for."""

    def __init__(self) -> None:
        self._result: tuple[T | Failure] | None = None
        self._waiting: list[Deferred[T]] = []

    @property
    def result(self) -> T | Failure | None:
        """The result, or the failure; None before it is known."""
        return self._result[0] if self._result is not None else None

    @property
    def is_known(self) -> bool:
        """Whether there is a result, which may be None."""
        return self._result is not None

    def resolve(self, result: T | Failure) -> None:
        """Set the result; a second one changes nothing.

        A CancelledError is no result: it could not be told from a wait that was cancelled.
        """
        if self._result is not None:
            return
        if isinstance(result, Failure) and result.check(CancelledError):
            result = Failure(RuntimeError("it was cancelled from inside"))
        self._result = (result,)
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            self._fire(deferred, result)

    def wait(self) -> Deferred[T]:
        """Fires with the result, once it is known. Cancelling it only stops waiting."""
        waiting: Deferred[T] = Deferred(self._waiting.remove)
        if self._result is not None:
            self._fire(waiting, self._result[0])
        else:
            self._waiting.append(waiting)
        return waiting

    @staticmethod
    def _fire(deferred: Deferred[T], result: T | Failure) -> None:
        if isinstance(result, Failure):
            deferred.errback(Failure(result.value))  # each has a traceback of its own
        else:
            deferred.callback(result)


class LifeState(StrEnum):
    MADE = "made"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class LifeInputs(Protocol):
    """The events of a life."""

    def start(self) -> None:
        """It is to begin."""

    def stop(self, why: str) -> None:
        """It is to end, as it stands."""

    def end(self, outcome: object) -> None:
        """It has ended, so."""


class LifeActions(Protocol):
    """What the machine does."""

    def begin(self) -> None:
        """Begin the work."""

    def refuse(self) -> None:
        """Refuse to begin once more."""

    def call_off(self, why: str) -> None:
        """End the work, if that is still possible."""

    def ended(self, outcome: object) -> None:
        """Nothing more happens: tell everybody who waits."""


_builder = TypeMachineBuilder(LifeInputs, LifeActions)  # type: ignore[type-abstract]
_made = _builder.state("made")
"""Nothing was done yet."""
_running = _builder.state("running")
"""It was started."""
_stopping = _builder.state("stopping")
"""It was started, and then stopped; its end may take a while, and may be a good one."""
_called_off = _builder.state("called off")
"""It was stopped before it was started: whoever starts it now only gets to know how it ended."""
_ended = _builder.state("ended")
"""The outcome is known."""


@_made.upon(LifeInputs.start).to(_running)
def _begin(machine: LifeInputs, actions: LifeActions) -> None:
    actions.begin()


@_running.upon(LifeInputs.start).loop()
@_stopping.upon(LifeInputs.start).loop()
@_ended.upon(LifeInputs.start).loop()
def _refuse(machine: LifeInputs, actions: LifeActions) -> None:
    actions.refuse()


@_made.upon(LifeInputs.stop).to(_called_off)
@_running.upon(LifeInputs.stop).to(_stopping)
def _call_off(machine: LifeInputs, actions: LifeActions, why: str) -> None:
    actions.call_off(why)


@_made.upon(LifeInputs.end).to(_ended)
@_running.upon(LifeInputs.end).to(_ended)
@_stopping.upon(LifeInputs.end).to(_ended)
@_called_off.upon(LifeInputs.end).loop()
def _end(machine: LifeInputs, actions: LifeActions, outcome: object) -> None:
    actions.ended(outcome)


_called_off.upon(LifeInputs.start).loop().returns(None)
for _state in (_stopping, _called_off, _ended):
    _state.upon(LifeInputs.stop).loop().returns(None)
_ended.upon(LifeInputs.end).loop().returns(None)

_make_life = _builder.build()


async def wait_or_stop(wait: Callable[[], Deferred[T]], stop: Callable[[str], None]) -> T:
    """Wait for a result of an object; where the waiting is cancelled, stop it, and wait on.

    @param wait: returns a Deferred of the result, each time.
    @param stop: stops the object, for the given reason.
    """
    while True:
        try:
            return await wait()
        except CancelledError:
            stop("cancelled")


class Life(Generic[T]):
    """The life of one object.

    @param name: what to call the object where it cannot be started.
    @param begin: called when it is started.
    @param call_off: called, with the reason, when it is stopped; before it was begun, too.
    @ivar state: the present state.
    """

    def __init__(
        self, name: str, *, begin: Callable[[], None], call_off: Callable[[str], None]
    ) -> None:
        self.state = LifeState.MADE
        self._name = name
        self._begin = begin
        self._call_off = call_off
        self._outcome: OneShot[T] = OneShot()
        self._to_tell: list[T | Failure] = []
        self._machine = _make_life(self)

    @property
    def outcome(self) -> T | Failure | None:
        """How it ended; None before that."""
        return self._outcome.result

    def start(self) -> None:
        """Begin, unless it was stopped before.

        @raise InUse: it was started before.
        """
        try:
            self._machine.start()
        finally:
            self._tell()

    def run(self) -> Deferred[T]:
        """Begin, and wait for the outcome; cancelling that is to stop.

        @return: fails with L{InUse} if it was started before.
        """
        return self.run_until(self.wait)

    def run_until(self, wait: Callable[[], Deferred[U]]) -> Deferred[U]:
        """Begin, and wait for something that comes before the outcome, or fails with it.

        @param wait: returns a Deferred of that, each time.
        @return: as L{run}.
        """
        try:
            self.start()
        except InUse:
            return fail()
        return Deferred.fromCoroutine(wait_or_stop(wait, self.stop))

    def stop(self, why: str) -> None:
        """Have it end as it stands."""
        self._machine.stop(why)
        self._tell()

    def end(self, outcome: T | Failure) -> None:
        """It has ended: tell everybody who waits."""
        self._machine.end(outcome)
        self._tell()

    def _tell(self) -> None:
        """Tell how it ended, outside of the machine: whoever hears it may start it again, which the
        machine has to refuse at once."""
        told, self._to_tell = self._to_tell, []
        for outcome in told:
            self._outcome.resolve(outcome)

    def wait(self) -> Deferred[T]:
        """Fires with the outcome, or fails. Cancelling it only stops waiting."""
        return self._outcome.wait()

    # LifeActions.

    def begin(self) -> None:
        self.state = LifeState.RUNNING
        self._begin()

    def refuse(self) -> None:
        raise InUse(f"{self._name} was started before: make another one")

    def call_off(self, why: str) -> None:
        self.state = LifeState.STOPPING
        self._call_off(why)

    def ended(self, outcome: object) -> None:
        self.state = LifeState.ENDED
        self._to_tell.append(outcome)  # type: ignore[arg-type]
