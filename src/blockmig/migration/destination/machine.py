"""The states of a migration as its destination sees it, and what moves it between them.

Owns when something may happen, and nothing else; what is done is up to the actions, which are the
methods of C{IncomingMigration}, in `migration`.

Rules (design, section 2: R3 to R5, R13):

* an attempt begins with the first request that changes the disk; while one goes on (and until none
  of its requests is under way any more) it is the only one;
* a drop ends the attempt (by the action C{restart}), never the migration. The migration is over
  when a disconnect was accepted and everything is durable; when the disk has failed and the sender
  has received the error, or had time to; when a disk that had lost its name has another; or when
  somebody gives up;
* once the disconnect was accepted the sender considers the migration done: it is completed, whoever
  wants to stop it. And a disk without a name would be lost with this process.

A state carries its data: the attempt that goes on, the completion that is waited for, the failure
that is being reported to the sender, the rescue. Requests and messages can arrive in the middle of
a transition, when a machine cannot be asked: so the actions keep some of these too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from automat import TypeMachineBuilder

from ...errors import MigrationError
from ...nbd import Errno, Request
from ...server import ServerConnection
from .attempt import IncomingAttempt
from .completion import Completion
from .disk_failures import DiskFailure
from .errnos import EventualErrno
from .message_handler import SentMessage
from .rescue import Rescue


class MigrationInputs(Protocol):
    """The events of a migration, as its destination sees it."""

    def change(self, connection: ServerConnection) -> EventualErrno:
        """C{connection} asks to change the disk; the result says whether it may."""

    def take_message(self, message: SentMessage) -> EventualErrno:
        """A message came through the side export; the result says whether it is acknowledged."""

    def covered(self, requests: Sequence[Request]) -> None:
        """Changes that the attempt's connection asked for were made."""

    def disconnect(self, connection: ServerConnection) -> None:
        """C{connection} sent the disconnect that completes the migration."""

    def drop(self, why: str) -> None:
        """The attempt's connection ended in any other way, and none of its requests is under
        way."""

    def durable(self) -> None:
        """What follows a disconnect is done: the disk is durable, and the record removed."""

    def disk_failed(self, error: BaseException | None) -> None:
        """An operation on the disk, or on its record, failed."""

    def displaced(self, error: BaseException | None) -> None:
        """The disk's name leads elsewhere, and this may be the only copy."""

    def rescued(self, error: MigrationError) -> None:
        """The disk has another name, with a record."""

    def give_up(self, error: MigrationError) -> None:
        """A person, or a time limit, wants the migration to end as it stands."""


class MigrationActions(Protocol):
    """What the machine does."""

    def begin(self, connection: ServerConnection) -> IncomingAttempt:
        """An attempt of C{connection} begins."""

    def record_attempt(self, connection: ServerConnection) -> EventualErrno:
        """Record that it does; OK once that is durable."""

    def change(self, attempt: IncomingAttempt, connection: ServerConnection) -> EventualErrno:
        """Whether C{connection} may change the disk during an attempt."""

    def take_message(self, message: SentMessage, attempt: IncomingAttempt | None) -> EventualErrno:
        """Act on a message during that attempt, if there is one."""

    def cover(self, attempt: IncomingAttempt, requests: Sequence[Request]) -> None:
        """The attempt has changed what C{requests} say."""

    def restart(self, attempt: IncomingAttempt, why: str) -> None:
        """The attempt is over, and its coverage forgotten."""

    def flush(self, connection: ServerConnection) -> Completion:
        """Make everything durable, and remove the record; answer with C{durable}."""

    def complete(self, completion: Completion) -> None:
        """The migration is complete."""

    def fail(self, error: BaseException | None) -> DiskFailure:
        """Report the error to the sender, for a short time; answer with C{give_up}."""

    def failed(self, failure: DiskFailure) -> None:
        """The sender has received the error, or had time to."""

    def rescue(self, error: BaseException | None) -> Rescue:
        """Give the disk a name again; answer with C{rescued}, however long that takes."""

    def end(self, error: MigrationError) -> None:
        """The migration ends with that error."""


def _begin(
    machine: MigrationInputs, actions: MigrationActions, connection: ServerConnection
) -> IncomingAttempt:
    return actions.begin(connection)


def _flush(
    machine: MigrationInputs, actions: MigrationActions, connection: ServerConnection
) -> Completion:
    return actions.flush(connection)


def _fail(
    machine: MigrationInputs, actions: MigrationActions, error: BaseException | None
) -> DiskFailure:
    return actions.fail(error)


def _rescue(
    machine: MigrationInputs, actions: MigrationActions, error: BaseException | None
) -> Rescue:
    return actions.rescue(error)


_builder = TypeMachineBuilder(MigrationInputs, MigrationActions)  # type: ignore[type-abstract]
_waiting = _builder.state("waiting")
"""No attempt goes on."""
_copying = _builder.state("copying", _begin)
"""One connection has the attempt."""
_finishing = _builder.state("finishing", _flush)
"""The disconnect was accepted; the last flush is under way."""
_failing = _builder.state("failing", _fail)
"""The disk has failed, and that is being reported to the sender."""
_rescuing = _builder.state("rescuing", _rescue)
"""The disk has lost its name when it may have been the only copy, and is given another."""
_over = _builder.state("over")
"""The outcome is known."""


@_waiting.upon(MigrationInputs.change).to(_copying)
def _record_attempt(
    machine: MigrationInputs, actions: MigrationActions, connection: ServerConnection
) -> EventualErrno:
    return actions.record_attempt(connection)


@_copying.upon(MigrationInputs.change).loop()
def _change(
    machine: MigrationInputs,
    actions: MigrationActions,
    attempt: IncomingAttempt,
    connection: ServerConnection,
) -> EventualErrno:
    return actions.change(attempt, connection)


@_waiting.upon(MigrationInputs.take_message).loop()
def _message_waiting(
    machine: MigrationInputs, actions: MigrationActions, message: SentMessage
) -> EventualErrno:
    return actions.take_message(message, None)


@_copying.upon(MigrationInputs.take_message).loop()
def _message_copying(
    machine: MigrationInputs,
    actions: MigrationActions,
    attempt: IncomingAttempt,
    message: SentMessage,
) -> EventualErrno:
    return actions.take_message(message, attempt)


@_copying.upon(MigrationInputs.covered).loop()
def _cover(
    machine: MigrationInputs,
    actions: MigrationActions,
    attempt: IncomingAttempt,
    requests: Sequence[Request],
) -> None:
    actions.cover(attempt, requests)


@_copying.upon(MigrationInputs.drop).to(_waiting)
def _restart(
    machine: MigrationInputs, actions: MigrationActions, attempt: IncomingAttempt, why: str
) -> None:
    actions.restart(attempt, why)


_waiting.upon(MigrationInputs.disconnect).to(_finishing).returns(None)
_copying.upon(MigrationInputs.disconnect).to(_finishing).returns(None)


@_finishing.upon(MigrationInputs.disconnect).loop()
def _disconnect_again(
    machine: MigrationInputs,
    actions: MigrationActions,
    completion: Completion,
    connection: ServerConnection,
) -> None:
    completion.connection = connection


@_finishing.upon(MigrationInputs.durable).to(_over)
def _complete(machine: MigrationInputs, actions: MigrationActions, completion: Completion) -> None:
    actions.complete(completion)


_waiting.upon(MigrationInputs.disk_failed).to(_failing).returns(None)
_copying.upon(MigrationInputs.disk_failed).to(_failing).returns(None)
_finishing.upon(MigrationInputs.disk_failed).to(_failing).returns(None)


@_failing.upon(MigrationInputs.change).loop()
def _answer_failing(
    machine: MigrationInputs,
    actions: MigrationActions,
    failure: DiskFailure,
    connection: ServerConnection,
) -> EventualErrno:
    return failure.errno


@_failing.upon(MigrationInputs.take_message).loop()
def _message_failing(
    machine: MigrationInputs,
    actions: MigrationActions,
    failure: DiskFailure,
    message: SentMessage,
) -> EventualErrno:
    return failure.errno


@_failing.upon(MigrationInputs.drop).to(_over)
def _reported(
    machine: MigrationInputs, actions: MigrationActions, failure: DiskFailure, why: str
) -> None:
    actions.failed(failure)


@_failing.upon(MigrationInputs.give_up).to(_over)
def _not_reported(
    machine: MigrationInputs, actions: MigrationActions, failure: DiskFailure, error: MigrationError
) -> None:
    actions.failed(failure)


_waiting.upon(MigrationInputs.displaced).to(_rescuing).returns(None)
_copying.upon(MigrationInputs.displaced).to(_rescuing).returns(None)
_finishing.upon(MigrationInputs.displaced).to(_rescuing).returns(None)


@_rescuing.upon(MigrationInputs.rescued).to(_over)
def _rescued(
    machine: MigrationInputs, actions: MigrationActions, rescue: Rescue, error: MigrationError
) -> None:
    actions.end(error)


@_waiting.upon(MigrationInputs.give_up).to(_over)
def _give_up(machine: MigrationInputs, actions: MigrationActions, error: MigrationError) -> None:
    actions.end(error)


@_copying.upon(MigrationInputs.give_up).to(_over)
def _give_up_attempt(
    machine: MigrationInputs,
    actions: MigrationActions,
    attempt: IncomingAttempt,
    error: MigrationError,
) -> None:
    actions.end(error)


def _ignore(given: Callable[..., None], *states: Any) -> None:
    for state in states:
        state.upon(given).loop().returns(None)


def _refuse(given: Callable[..., EventualErrno], *states: Any) -> None:
    for state in states:
        state.upon(given).loop().returns(Errno.ESHUTDOWN)


_refuse(MigrationInputs.change, _finishing, _rescuing, _over)
_refuse(MigrationInputs.take_message, _finishing, _rescuing, _over)
_ignore(MigrationInputs.covered, _waiting, _finishing, _failing, _rescuing, _over)
_ignore(MigrationInputs.disconnect, _failing, _rescuing, _over)
_ignore(MigrationInputs.drop, _waiting, _finishing, _rescuing, _over)
_ignore(MigrationInputs.durable, _waiting, _copying, _failing, _rescuing, _over)
_ignore(MigrationInputs.disk_failed, _failing, _rescuing, _over)
_ignore(MigrationInputs.displaced, _failing, _rescuing, _over)
_ignore(MigrationInputs.give_up, _finishing, _rescuing, _over)

make_machine = _builder.build()
"""Makes the machine of one migration from its actions; it begins in C{waiting}."""
