"""How a connection comes to its end, as a machine.

Owns the order in which an end is told of, and nothing of what is said on the wire.

Rules:

* from the disconnect on, or from when we close, no request is acted on any more; nor once another
  server is to answer, but then the end is told of all the same;
* the disconnect is told of when nothing of the connection is being carried out, once, and not if we
  closed before that;
* the loss of the connection is told of last, when nothing is being carried out, once, whatever else
  was;
* the machine tells the transport to close once, and to abort once.
"""

from __future__ import annotations

from typing import Protocol

from automat import TypeMachineBuilder

from .forwarding import Forwarder


class LifetimeInputs(Protocol):
    """What can happen."""

    def disconnect(self) -> None:
        """The client sent DISC."""

    def finish(self) -> None:
        """Nothing more can come; we close as soon as nothing is being carried out."""

    def drain(self) -> None:
        """We want to close, as soon as nothing is being carried out."""

    def idle(self) -> None:
        """Nothing is being carried out (any more)."""

    def forward(self, forwarder: Forwarder) -> None:
        """Another server is to answer; nothing is being carried out, nor will be."""

    def close(self) -> None:
        """We close, when all that is due was sent."""

    def abort(self) -> None:
        """We close, at once."""

    def lose(self) -> None:
        """The connection is gone."""


class LifetimeCore(Protocol):
    """What is done on the way, by the connection."""

    def refuse(self) -> None:
        """Refuse new requests."""

    def ignore(self) -> None:
        """Act on nothing any more that the client sends."""

    def announce_disconnected(self) -> None:
        """Tell whoever decides of the disconnect."""

    def announce_gone(self) -> None:
        """Tell whoever decides that the connection is no more."""

    def begin_forwarding(self, forwarder: Forwarder) -> None:
        """Give the connection up to whoever passes it on."""

    def close_transport(self) -> None:
        """Close, when all was sent."""

    def abort_transport(self) -> None:
        """Close."""


# mypy wants a class that could be made; Automat only wants its name.
_builder = TypeMachineBuilder(LifetimeInputs, LifetimeCore)  # type: ignore[type-abstract]
_open = _builder.state("open")
"""Requests come."""
_draining = _builder.state("draining")
"""Those that came are finished; new ones are refused."""
_finishing = _builder.state("finishing")
"""No more requests can come; what is being carried out is finished, and answered."""
_disconnected = _builder.state("disconnected")
"""The client disconnected; something of it is still being carried out."""
_forwarded = _builder.state("forwarded")
"""Another server answers."""
_announced = _builder.state("announced")
"""Whoever decides knows of the disconnect, and is to close."""
_closing = _builder.state("closing")
"""We close; perhaps not all was sent yet."""
_aborting = _builder.state("aborting")
"""We have closed at once."""
_lost_disconnected = _builder.state("lost, disconnected")
"""Gone after a disconnect that was not told of yet."""
_lost = _builder.state("lost")
"""Gone, which was not told of yet."""
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
