"""The end of an attempt at the source, step by step: the hand-off.

Owns the order of the steps and nothing else; what a step does is the actions' affair, so that the
machine can be driven without a reactor, a disk or a wire.

The order (design, section 2) is copy, flush, retire, disconnect, wait for the peer to close:

* flush is asked for when every byte was acknowledged, and its reply lets the source be retired;
* the source is retired before the disconnect is sent;
* until retiring has begun, anything that goes wrong is an early drop: the source is as it was, and
  another attempt may follow;
* once retiring has begun there is no other attempt, whatever happens: if it fails, the source is
  still there and the migration ends with that error; if it succeeds, the destination is canonical,
  and all that can still be unknown is whether it has been told.
"""

from __future__ import annotations

from typing import Protocol

from automat import TypeMachineBuilder


class HandoffActions(Protocol):
    """What the machine has done; each is called at most once."""

    def flush(self) -> None:
        """Ask the destination to make its copy durable; answer with C{flushed}."""

    def retire(self) -> None:
        """Retire the source; answer with C{retired} or C{retire_failed}."""

    def disconnect(self) -> None:
        """Send the disconnect and half-close; answer with C{closed}, C{dropped} in the end."""

    def done(self) -> None:
        """The migration is complete."""

    def restart(self, why: str) -> None:
        """The attempt ended early; the source is canonical."""

    def failed(self, error: BaseException | None) -> None:
        """Retiring failed, and the disk must not be sent again before a human looked."""

    def unconfirmed(self, why: str) -> None:
        """The source is retired, but the destination may not know it."""


class Handoff(Protocol):
    """What can happen to an attempt, as its source sees it."""

    def covered(self) -> None:
        """Every byte was sent and acknowledged."""

    def flushed(self) -> None:
        """The flush was acknowledged."""

    def retired(self) -> None:
        """The source is retired, durably."""

    def retire_failed(self, error: BaseException | None) -> None:
        """It could not be retired."""

    def closed(self) -> None:
        """The peer closed the connection in good order, behind the disconnect."""

    def dropped(self, why: str) -> None:
        """The connection is lost, or of no more use."""


_builder = TypeMachineBuilder(Handoff, HandoffActions)  # type: ignore[type-abstract]
_copying = _builder.state("copying")
_flushing = _builder.state("flushing")
_retiring = _builder.state("retiring")
_retiring_alone = _builder.state("retiring, connection lost")
_disconnecting = _builder.state("disconnecting")
_ended = _builder.state("ended")


@_copying.upon(Handoff.covered).to(_flushing)
def _flush(machine: Handoff, actions: HandoffActions) -> None:
    actions.flush()


@_flushing.upon(Handoff.flushed).to(_retiring)
def _retire(machine: Handoff, actions: HandoffActions) -> None:
    actions.retire()


@_retiring.upon(Handoff.retired).to(_disconnecting)
def _disconnect(machine: Handoff, actions: HandoffActions) -> None:
    actions.disconnect()


@_disconnecting.upon(Handoff.closed).to(_ended)
def _done(machine: Handoff, actions: HandoffActions) -> None:
    actions.done()


@_copying.upon(Handoff.dropped).to(_ended)
@_flushing.upon(Handoff.dropped).to(_ended)
def _restart(machine: Handoff, actions: HandoffActions, why: str) -> None:
    actions.restart(why)


@_copying.upon(Handoff.closed).to(_ended)
@_flushing.upon(Handoff.closed).to(_ended)
def _restart_after_close(machine: Handoff, actions: HandoffActions) -> None:
    actions.restart("the destination closed the connection")


@_retiring.upon(Handoff.retire_failed).to(_ended)
@_retiring_alone.upon(Handoff.retire_failed).to(_ended)
def _failed(machine: Handoff, actions: HandoffActions, error: BaseException | None) -> None:
    actions.failed(error)


@_retiring_alone.upon(Handoff.retired).to(_ended)
def _too_late(machine: Handoff, actions: HandoffActions) -> None:
    actions.unconfirmed("the connection was lost before the disconnect")


@_disconnecting.upon(Handoff.dropped).to(_ended)
def _unconfirmed(machine: Handoff, actions: HandoffActions, why: str) -> None:
    actions.unconfirmed(why)


_retiring.upon(Handoff.dropped).to(_retiring_alone).returns(None)
_retiring.upon(Handoff.closed).to(_retiring_alone).returns(None)
_retiring_alone.upon(Handoff.dropped).loop().returns(None)
_retiring_alone.upon(Handoff.closed).loop().returns(None)
for _input in (
    Handoff.covered,
    Handoff.flushed,
    Handoff.retired,
    Handoff.closed,
):
    _ended.upon(_input).loop().returns(None)
_ended.upon(Handoff.retire_failed).loop().returns(None)
_ended.upon(Handoff.dropped).loop().returns(None)

make_handoff = _builder.build()
"""Makes the machine of one attempt from its actions; it begins in C{copying}."""
