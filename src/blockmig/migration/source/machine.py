"""The end of an attempt at the source, step by step: the hand-off.

Owns the order of the steps and nothing else; what a step does is up to the actions, so that the
machine can be driven without a reactor, a disk or a wire.

The order (design, section 2) is copy, flush, confirm, record, retire, announce, disconnect, check:

* the flush is requested when every byte was acknowledged; its reply says that the copy is durable;
* the destination then confirms that it has recorded that for this very migration, and we record it
  ourselves: only then may the source be retired;
* the source is retired before that is announced to the destination, and it is announced before the
  disconnect is sent;
* until retiring has begun the disk may come into use again (its clients were held, and had to be
  released): then there is more to copy, and what was recorded of the copy so far no longer counts;
* until retiring has begun, anything that goes wrong is an early drop: the source is as it was, and
  another attempt may follow;
* once retiring has begun there is no other attempt, whatever happens: if it fails, the source is
  still there and the migration ends with that error; if it succeeds, the destination is canonical,
  and what is left is to notify it, on another connection if this one is lost.

A destination without a side export can neither confirm, nor be notified, nor be asked at the end:
those steps then do nothing, and their order is the same.
"""

from __future__ import annotations

from typing import Protocol

from automat import TypeMachineBuilder


class HandoffActions(Protocol):
    """What the machine does; C{resume_copying} and what follows it may be called repeatedly until
    C{retire}, everything else at most once."""

    def resume_copying(self) -> None:
        """There is more to copy; answer with C{covered} again."""

    def unrecord_and_resume(self) -> None:
        """As C{resume_copying}, once the record no longer says that the copy is whole."""

    def flush(self) -> None:
        """Ask the destination to make its copy durable; answer with C{flushed}."""

    def confirm(self) -> None:
        """Ask it whether its copy of this migration is recorded; answer with C{confirmed}."""

    def record(self) -> None:
        """Record the copy here; answer with C{recorded} or C{step_failed}."""

    def retire(self) -> None:
        """Retire the source; answer with C{retired} or C{step_failed}."""

    def announce(self) -> None:
        """Announce to the destination that the source is retired; answer with C{acknowledged}."""

    def disconnect(self) -> None:
        """Send the disconnect and half-close; answer with C{closed}, or C{dropped} in the end."""

    def check(self, why: str) -> None:
        """Find out whether the destination is complete; answer with C{complete} or C{incomplete}.

        @param why: how the connection was lost after the disconnect; "" where it was closed in good
            order.
        """

    def done(self) -> None:
        """The migration is complete."""

    def restart(self, why: str) -> None:
        """The attempt ended early; the source is canonical."""

    def restart_changed(self, error: BaseException | None) -> None:
        """As C{restart}, if our own server's clients may have changed the disk; as C{failed} if
        not."""

    def failed(self, error: BaseException | None) -> None:
        """A step failed here, and the disk must not be sent again before a human has looked."""

    def finish(self, why: str) -> None:
        """The source is retired, but the destination may not know that it is complete."""


class Handoff(Protocol):
    """The events of an attempt, as its source sees it."""

    def covered(self) -> None:
        """Every byte was sent and acknowledged."""

    def released(self) -> None:
        """The disk is in use again."""

    def flushed(self) -> None:
        """The flush was acknowledged."""

    def confirmed(self) -> None:
        """The destination has recorded the whole copy."""

    def recorded(self) -> None:
        """So have we."""

    def retired(self) -> None:
        """The source is retired, durably."""

    def acknowledged(self) -> None:
        """The destination acknowledged that, durably."""

    def changed(self, error: BaseException | None) -> None:
        """The copy was not recorded, since the disk is not what it was."""

    def step_failed(self, error: BaseException | None) -> None:
        """The record could not be written, or the source not be retired."""

    def closed(self) -> None:
        """The peer closed the connection in good order; it should do so only after the
        disconnect."""

    def complete(self) -> None:
        """The destination is complete."""

    def incomplete(self, why: str) -> None:
        """The destination is not complete, or cannot be asked."""

    def dropped(self, why: str) -> None:
        """The connection is lost, or of no more use."""


_builder = TypeMachineBuilder(Handoff, HandoffActions)  # type: ignore[type-abstract]
_copying = _builder.state("copying")
_flushing = _builder.state("flushing")
_confirming = _builder.state("confirming")
_recording = _builder.state("recording")
_recording_released = _builder.state("recording, in use again")
_recording_alone = _builder.state("recording, connection lost")
_retiring = _builder.state("retiring")
_retiring_alone = _builder.state("retiring, connection lost")
_announcing = _builder.state("announcing")
_disconnecting = _builder.state("disconnecting")
_checking = _builder.state("checking")
_ended = _builder.state("ended")

_CLOSED = "the destination closed the connection"
_LOST = "the connection was lost before the disconnect"


@_copying.upon(Handoff.covered).to(_flushing)
def _flush(machine: Handoff, actions: HandoffActions) -> None:
    actions.flush()


@_flushing.upon(Handoff.released).to(_copying)
@_confirming.upon(Handoff.released).to(_copying)
def _resume_copying(machine: Handoff, actions: HandoffActions) -> None:
    actions.resume_copying()


@_flushing.upon(Handoff.flushed).to(_confirming)
def _confirm(machine: Handoff, actions: HandoffActions) -> None:
    actions.confirm()


@_confirming.upon(Handoff.confirmed).to(_recording)
def _record(machine: Handoff, actions: HandoffActions) -> None:
    actions.record()


@_recording.upon(Handoff.recorded).to(_retiring)
def _retire(machine: Handoff, actions: HandoffActions) -> None:
    actions.retire()


@_retiring.upon(Handoff.retired).to(_announcing)
def _announce(machine: Handoff, actions: HandoffActions) -> None:
    actions.announce()


@_announcing.upon(Handoff.acknowledged).to(_disconnecting)
def _disconnect(machine: Handoff, actions: HandoffActions) -> None:
    actions.disconnect()


@_disconnecting.upon(Handoff.closed).to(_checking)
def _check(machine: Handoff, actions: HandoffActions) -> None:
    actions.check("")


@_disconnecting.upon(Handoff.dropped).to(_checking)
def _check_lost(machine: Handoff, actions: HandoffActions, why: str) -> None:
    actions.check(why)


@_checking.upon(Handoff.complete).to(_ended)
def _done(machine: Handoff, actions: HandoffActions) -> None:
    actions.done()


@_copying.upon(Handoff.dropped).to(_ended)
@_flushing.upon(Handoff.dropped).to(_ended)
@_confirming.upon(Handoff.dropped).to(_ended)
def _restart(machine: Handoff, actions: HandoffActions, why: str) -> None:
    actions.restart(why)


@_copying.upon(Handoff.closed).to(_ended)
@_flushing.upon(Handoff.closed).to(_ended)
@_confirming.upon(Handoff.closed).to(_ended)
def _restart_after_close(machine: Handoff, actions: HandoffActions) -> None:
    actions.restart(_CLOSED)


@_recording_released.upon(Handoff.recorded).to(_copying)
def _unrecord_and_resume(machine: Handoff, actions: HandoffActions) -> None:
    actions.unrecord_and_resume()


# Clients that were released meanwhile may have written to it: there is more to copy.
@_recording_released.upon(Handoff.changed).to(_copying)
def _resume_changed(machine: Handoff, actions: HandoffActions, error: BaseException | None) -> None:
    actions.unrecord_and_resume()


@_recording_alone.upon(Handoff.changed).to(_ended)
def _restart_changed(
    machine: Handoff, actions: HandoffActions, error: BaseException | None
) -> None:
    actions.restart_changed(error)


@_recording_alone.upon(Handoff.recorded).to(_ended)
def _restart_after_record(machine: Handoff, actions: HandoffActions) -> None:
    actions.restart("the connection was lost before the source was retired")


@_recording.upon(Handoff.changed).to(_ended)
@_recording.upon(Handoff.step_failed).to(_ended)
@_recording_released.upon(Handoff.step_failed).to(_ended)
@_recording_alone.upon(Handoff.step_failed).to(_ended)
@_retiring.upon(Handoff.step_failed).to(_ended)
@_retiring_alone.upon(Handoff.step_failed).to(_ended)
def _failed(machine: Handoff, actions: HandoffActions, error: BaseException | None) -> None:
    actions.failed(error)


@_retiring_alone.upon(Handoff.retired).to(_ended)
def _too_late(machine: Handoff, actions: HandoffActions) -> None:
    actions.finish(_LOST)


@_announcing.upon(Handoff.dropped).to(_ended)
@_checking.upon(Handoff.incomplete).to(_ended)
def _finish(machine: Handoff, actions: HandoffActions, why: str) -> None:
    actions.finish(why)


@_announcing.upon(Handoff.closed).to(_ended)
def _finish_after_close(machine: Handoff, actions: HandoffActions) -> None:
    actions.finish(_CLOSED)


_recording.upon(Handoff.released).to(_recording_released).returns(None)
for _with, _without in (
    (_recording, _recording_alone),
    (_recording_released, _recording_alone),
    (_retiring, _retiring_alone),
):
    _with.upon(Handoff.dropped).to(_without).returns(None)
    _with.upon(Handoff.closed).to(_without).returns(None)
for _state in (_recording_alone, _retiring_alone, _checking, _ended):
    _state.upon(Handoff.dropped).loop().returns(None)
    _state.upon(Handoff.closed).loop().returns(None)
for _input in (
    Handoff.covered,
    Handoff.flushed,
    Handoff.confirmed,
    Handoff.recorded,
    Handoff.retired,
    Handoff.acknowledged,
    Handoff.complete,
):
    _ended.upon(_input).loop().returns(None)
for _state in (_copying, _recording_alone, _ended):
    _state.upon(Handoff.released).loop().returns(None)
_ended.upon(Handoff.changed).loop().returns(None)
_ended.upon(Handoff.step_failed).loop().returns(None)
_ended.upon(Handoff.incomplete).loop().returns(None)

make_handoff = _builder.build()
"""Makes the machine of one attempt from its actions; it begins in C{copying}."""
