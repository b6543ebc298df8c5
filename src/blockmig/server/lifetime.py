"""How a connection ends: a state machine.

Owns the order of the steps and notifications at the end, and nothing of the wire.

Rules:

* no request is processed any more after the disconnect, after we close, or after the connection is
  forwarded to another server; a forwarded connection's end is notified like any other's;
* the disconnect is announced when no request is being carried out, once, and not if we closed
  before that;
* the loss of the connection is announced last, when no request is being carried out, once, whatever
  happened before;
* the transport is closed at most once, and aborted at most once.
"""

from __future__ import annotations

from typing import Protocol

from automat import TypeMachineBuilder

from .forwarding import Forwarder


class LifetimeInputs(Protocol):
    """The events."""

    def disconnect(self) -> None:
        """The client sent DISC."""

    def finish(self) -> None:
        """The client sends no more; close as soon as no request is being carried out."""

    def drain(self) -> None:
        """Close as soon as no request is being carried out; refuse new ones until then."""

    def idle(self) -> None:
        """No request is being carried out (any more)."""

    def forward(self, forwarder: Forwarder) -> None:
        """Another server is to answer; no request is being carried out, nor will be."""

    def close(self) -> None:
        """Close once everything that is due was sent."""

    def abort(self) -> None:
        """Close at once."""

    def lose(self) -> None:
        """The connection was lost."""


class LifetimeCore(Protocol):
    """The actions, which the connection implements."""

    def refuse(self) -> None:
        """Refuse new requests."""

    def ignore(self) -> None:
        """Process nothing more that the client sends."""

    def announce_disconnected(self) -> None:
        """Notify the handler of the disconnect."""

    def announce_gone(self) -> None:
        """Notify the handler that the connection is gone."""

    def begin_forwarding(self, forwarder: Forwarder) -> None:
        """Hand the connection over to C{forwarder}."""

    def close_transport(self) -> None:
        """Close once everything was sent."""

    def abort_transport(self) -> None:
        """Close at once."""


# mypy wants a class that can be instantiated; Automat only needs its name.
_builder = TypeMachineBuilder(LifetimeInputs, LifetimeCore)  # type: ignore[type-abstract]
_open = _builder.state("open")
"""Requests are received."""
_draining = _builder.state("draining")
"""Requests in progress are finished; new ones are refused."""
_finishing = _builder.state("finishing")
"""The client sends no more; requests in progress are finished and answered."""
_disconnected = _builder.state("disconnected")
"""The client disconnected; a request of it is still being carried out."""
_forwarded = _builder.state("forwarded")
"""Another server answers."""
_announced = _builder.state("announced")
"""The handler was notified of the disconnect, and is to close."""
_closing = _builder.state("closing")
"""We close; there may still be something to send."""
_aborting = _builder.state("aborting")
"""We have closed at once."""
_lost_disconnected = _builder.state("lost, disconnected")
"""Lost after a disconnect that was not announced yet."""
_lost = _builder.state("lost")
"""Lost, which was not announced yet."""
_gone = _builder.state("gone")
"""It is over."""


@_open.upon(LifetimeInputs.finish).to(_finishing)
@_draining.upon(LifetimeInputs.finish).to(_finishing)
@_open.upon(LifetimeInputs.disconnect).to(_disconnected)
@_draining.upon(LifetimeInputs.disconnect).to(_disconnected)
def _stop_reading(machine: LifetimeInputs, core: LifetimeCore) -> None:
    core.ignore()


@_open.upon(LifetimeInputs.drain).to(_draining)
def _drain(machine: LifetimeInputs, core: LifetimeCore) -> None:
    core.refuse()


@_open.upon(LifetimeInputs.forward).to(_forwarded)
def _forward(machine: LifetimeInputs, core: LifetimeCore, forwarder: Forwarder) -> None:
    core.ignore()
    core.begin_forwarding(forwarder)


@_disconnected.upon(LifetimeInputs.idle).to(_announced)
def _announce_disconnected(machine: LifetimeInputs, core: LifetimeCore) -> None:
    core.announce_disconnected()


@_open.upon(LifetimeInputs.close).to(_closing)
@_draining.upon(LifetimeInputs.close).to(_closing)
@_draining.upon(LifetimeInputs.idle).to(_closing)
@_finishing.upon(LifetimeInputs.close).to(_closing)
@_finishing.upon(LifetimeInputs.idle).to(_closing)
@_disconnected.upon(LifetimeInputs.close).to(_closing)
@_announced.upon(LifetimeInputs.close).to(_closing)
@_forwarded.upon(LifetimeInputs.close).to(_closing)
@_forwarded.upon(LifetimeInputs.drain).to(_closing)
def _close(machine: LifetimeInputs, core: LifetimeCore) -> None:
    core.ignore()
    core.close_transport()


@_open.upon(LifetimeInputs.abort).to(_aborting)
@_draining.upon(LifetimeInputs.abort).to(_aborting)
@_finishing.upon(LifetimeInputs.abort).to(_aborting)
@_disconnected.upon(LifetimeInputs.abort).to(_aborting)
@_announced.upon(LifetimeInputs.abort).to(_aborting)
@_forwarded.upon(LifetimeInputs.abort).to(_aborting)
@_closing.upon(LifetimeInputs.abort).to(_aborting)
def _abort(machine: LifetimeInputs, core: LifetimeCore) -> None:
    core.ignore()
    core.abort_transport()


@_disconnected.upon(LifetimeInputs.lose).to(_lost_disconnected)
@_open.upon(LifetimeInputs.lose).to(_lost)
@_draining.upon(LifetimeInputs.lose).to(_lost)
@_finishing.upon(LifetimeInputs.lose).to(_lost)
@_announced.upon(LifetimeInputs.lose).to(_lost)
@_forwarded.upon(LifetimeInputs.lose).to(_lost)
@_closing.upon(LifetimeInputs.lose).to(_lost)
@_aborting.upon(LifetimeInputs.lose).to(_lost)
def _lose(machine: LifetimeInputs, core: LifetimeCore) -> None:
    core.ignore()


@_lost_disconnected.upon(LifetimeInputs.idle).to(_gone)
def _announce_both(machine: LifetimeInputs, core: LifetimeCore) -> None:
    core.announce_disconnected()
    core.announce_gone()


@_lost.upon(LifetimeInputs.idle).to(_gone)
def _announce_gone(machine: LifetimeInputs, core: LifetimeCore) -> None:
    core.announce_gone()


_ending = (
    _finishing,
    _disconnected,
    _announced,
    _closing,
    _aborting,
    _lost_disconnected,
    _lost,
    _gone,
)
for _state in (_forwarded, *_ending):
    _state.upon(LifetimeInputs.disconnect).loop().returns(None)
    _state.upon(LifetimeInputs.finish).loop().returns(None)
for _state in (_draining, *_ending):
    _state.upon(LifetimeInputs.drain).loop().returns(None)
for _state in (_draining, _forwarded, *_ending):
    _state.upon(LifetimeInputs.forward).loop().returns(None)
for _state in (_open, _forwarded, _announced, _closing, _aborting, _gone):
    _state.upon(LifetimeInputs.idle).loop().returns(None)
for _state in (_closing, _aborting, _lost_disconnected, _lost, _gone):
    _state.upon(LifetimeInputs.close).loop().returns(None)
for _state in (_aborting, _lost_disconnected, _lost, _gone):
    _state.upon(LifetimeInputs.abort).loop().returns(None)
for _state in (_lost_disconnected, _lost, _gone):
    _state.upon(LifetimeInputs.lose).loop().returns(None)

make_lifetime = _builder.build()
"""Makes the machine of one connection; it begins in C{open}."""
