"""A migration as its destination sees it: the states, and what moves it between them.

Owns when something may happen, and nothing else; what is done is the actions' affair.

Rules (design, section 2: R3 to R5, R13):

* an attempt begins with the first request that changes the disk; while one goes on (and until
  nothing of it is under way any more) it is the only one;
* a drop ends the attempt, never the migration. It is over when a disconnect was accepted and all is
  durable; when the disk has failed and the sender was told, or had its time; when a disk that had
  lost its name has another; or when somebody gives up;
* once the disconnect was accepted the sender holds the migration for done: it is finished, whoever
  wants it to end. And a disk without a name would be gone with us.

What a state goes with is its data: the attempt that goes on, the end that is waited for, the
failure that the sender is being told, the rescue. Requests and messages can come in the middle of a
transition, when a machine cannot be asked: so the actions keep some of these too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from automat import TypeMachineBuilder

from ...errors import MigrationError
from ...nbd import Errno, Request
from ...server import ServerConnection
from ..handoff.message import Page
from .answers import Answer
from .attempt import IncomingAttempt
from .ending import Ending
from .rescue import Rescue
from .trouble import DiskFailure


class Inputs(Protocol):
    """What can happen to a migration, as its destination sees it."""

    def change(self, connection: ServerConnection) -> Answer:
        """C{connection} asks to change the disk; the answer says whether it may."""

    def tell(self, page: Page) -> Answer:
        """A message came by the side export; the answer says whether it is acknowledged."""

    def covered(self, request: Request) -> None:
        """A change that the attempt's connection asked for was made."""

    def disconnect(self, connection: ServerConnection) -> None:
        """The disconnect that completes the migration came, by C{connection}."""

    def drop(self, why: str) -> None:
        """The attempt's connection ended in any other way, and nothing of it is under way."""

    def durable(self) -> None:
        """What follows a disconnect is done: the disk is durable, the record gone."""

    def disk_failed(self, error: BaseException | None) -> None:
        """The disk, or its record, did not do what it was told to."""

    def displaced(self, error: BaseException | None) -> None:
        """The disk's name leads elsewhere, and this may be the only copy."""

    def rescued(self, error: MigrationError) -> None:
        """The disk has another name, and is on record under that."""

    def give_up(self, error: MigrationError) -> None:
        """Somebody, or the clock, wants the migration to end as it stands."""


class Actions(Protocol):
    """What the machine has done."""

    def begin(self, connection: ServerConnection) -> IncomingAttempt:
        """An attempt of C{connection} begins."""

    def put_on_record(self, connection: ServerConnection) -> Answer:
        """Put on record that it does; OK once that stands there."""

    def change(self, attempt: IncomingAttempt, connection: ServerConnection) -> Answer:
        """Whether C{connection} may change the disk, while an attempt goes on."""

    def tell(self, page: Page, attempt: IncomingAttempt | None) -> Answer:
        """Act on a message, while that attempt goes on."""

    def cover(self, attempt: IncomingAttempt, request: Request) -> None:
        """The attempt has changed what C{request} says."""

    def restart(self, attempt: IncomingAttempt, why: str) -> None:
        """The attempt is over, and its coverage forgotten."""

    def flush(self, connection: ServerConnection) -> Ending:
        """Make all durable, and take the record away; answer with C{durable}."""

    def complete(self, ending: Ending) -> None:
        """The migration is complete."""

    def fail(self, error: BaseException | None) -> DiskFailure:
        """Have the sender told, for a little time; answer with C{give_up}."""

    def failed(self, failure: DiskFailure) -> None:
        """The sender was told, or had its time."""

    def rescue(self, error: BaseException | None) -> Rescue:
        """Give the disk a name again; answer with C{rescued}, however long that takes."""

    def end(self, error: MigrationError) -> None:
        """The migration ends with that."""


def _begin(machine: Inputs, actions: Actions, connection: ServerConnection) -> IncomingAttempt:
    return actions.begin(connection)


def _flush(machine: Inputs, actions: Actions, connection: ServerConnection) -> Ending:
    return actions.flush(connection)


def _fail(machine: Inputs, actions: Actions, error: BaseException | None) -> DiskFailure:
    return actions.fail(error)


def _rescue(machine: Inputs, actions: Actions, error: BaseException | None) -> Rescue:
    return actions.rescue(error)


_builder = TypeMachineBuilder(Inputs, Actions)  # type: ignore[type-abstract]
_waiting = _builder.state("waiting")
"""No attempt goes on."""
_copying = _builder.state("copying", _begin)
"""One connection has the attempt."""
_finishing = _builder.state("finishing", _flush)
"""The disconnect was accepted; the last flush is under way."""
_failing = _builder.state("failing", _fail)
"""The disk has failed, and the sender is being told."""
_rescuing = _builder.state("rescuing", _rescue)
"""The disk has lost its name when it may have been the only copy, and is given another."""
_over = _builder.state("over")
"""The outcome is known."""


@_waiting.upon(Inputs.change).to(_copying)
def _put_on_record(machine: Inputs, actions: Actions, connection: ServerConnection) -> Answer:
    return actions.put_on_record(connection)


@_copying.upon(Inputs.change).loop()
def _change(
    machine: Inputs, actions: Actions, attempt: IncomingAttempt, connection: ServerConnection
) -> Answer:
    return actions.change(attempt, connection)


@_waiting.upon(Inputs.tell).loop()
def _tell_waiting(machine: Inputs, actions: Actions, page: Page) -> Answer:
    return actions.tell(page, None)


@_copying.upon(Inputs.tell).loop()
def _tell_copying(
    machine: Inputs, actions: Actions, attempt: IncomingAttempt, page: Page
) -> Answer:
    return actions.tell(page, attempt)


@_copying.upon(Inputs.covered).loop()
def _cover(machine: Inputs, actions: Actions, attempt: IncomingAttempt, request: Request) -> None:
    actions.cover(attempt, request)


@_copying.upon(Inputs.drop).to(_waiting)
def _restart(machine: Inputs, actions: Actions, attempt: IncomingAttempt, why: str) -> None:
    actions.restart(attempt, why)


_waiting.upon(Inputs.disconnect).to(_finishing).returns(None)
_copying.upon(Inputs.disconnect).to(_finishing).returns(None)


@_finishing.upon(Inputs.disconnect).loop()
def _disconnect_again(
    machine: Inputs, actions: Actions, ending: Ending, connection: ServerConnection
) -> None:
    ending.connection = connection


@_finishing.upon(Inputs.durable).to(_over)
def _complete(machine: Inputs, actions: Actions, ending: Ending) -> None:
    actions.complete(ending)


_waiting.upon(Inputs.disk_failed).to(_failing).returns(None)
_copying.upon(Inputs.disk_failed).to(_failing).returns(None)
_finishing.upon(Inputs.disk_failed).to(_failing).returns(None)


@_failing.upon(Inputs.change).loop()
def _tell_failure(
    machine: Inputs, actions: Actions, failure: DiskFailure, connection: ServerConnection
) -> Answer:
    return failure.answer


@_failing.upon(Inputs.tell).loop()
def _tell_failure_aside(
    machine: Inputs, actions: Actions, failure: DiskFailure, page: Page
) -> Answer:
    return failure.answer


@_failing.upon(Inputs.drop).to(_over)
def _told(machine: Inputs, actions: Actions, failure: DiskFailure, why: str) -> None:
    actions.failed(failure)


@_failing.upon(Inputs.give_up).to(_over)
def _not_told(
    machine: Inputs, actions: Actions, failure: DiskFailure, error: MigrationError
) -> None:
    actions.failed(failure)


_waiting.upon(Inputs.displaced).to(_rescuing).returns(None)
_copying.upon(Inputs.displaced).to(_rescuing).returns(None)
_finishing.upon(Inputs.displaced).to(_rescuing).returns(None)


@_rescuing.upon(Inputs.rescued).to(_over)
def _has_a_name(machine: Inputs, actions: Actions, rescue: Rescue, error: MigrationError) -> None:
    actions.end(error)


@_waiting.upon(Inputs.give_up).to(_over)
def _give_up(machine: Inputs, actions: Actions, error: MigrationError) -> None:
    actions.end(error)


@_copying.upon(Inputs.give_up).to(_over)
def _give_up_attempt(
    machine: Inputs, actions: Actions, attempt: IncomingAttempt, error: MigrationError
) -> None:
    actions.end(error)


def _ignore(given: Callable[..., None], *states: Any) -> None:
    for state in states:
        state.upon(given).loop().returns(None)


def _refuse(given: Callable[..., Answer], *states: Any) -> None:
    for state in states:
        state.upon(given).loop().returns(Errno.ESHUTDOWN)


_refuse(Inputs.change, _finishing, _rescuing, _over)
_refuse(Inputs.tell, _finishing, _rescuing, _over)
_ignore(Inputs.covered, _waiting, _finishing, _failing, _rescuing, _over)
_ignore(Inputs.disconnect, _failing, _rescuing, _over)
_ignore(Inputs.drop, _waiting, _finishing, _rescuing, _over)
_ignore(Inputs.durable, _waiting, _copying, _failing, _rescuing, _over)
_ignore(Inputs.disk_failed, _failing, _rescuing, _over)
_ignore(Inputs.displaced, _failing, _rescuing, _over)
_ignore(Inputs.give_up, _finishing, _rescuing, _over)

make_machine = _builder.build()
"""Makes the machine of one migration from its actions; it begins in C{waiting}."""
