"""Several exports on one port: each belongs to a server or a receiver of the same process.

Owns a connection from when it is made until it has chosen an export, the names that are offered,
and the number of connections. Whatever comes after that belongs to whoever offers the export.

Rules:

* a name is offered once: also those of side exports count;
* an export whose server or receiver is ending is neither listed nor found any more;
* a connection that has chosen an export has its owner's rules before its first request is looked
  at: threads, timeouts, holds, the relay, the count of clients, the end;
* a connection above a limit of the owner's is told so, and may choose another export; one above our
  own limit is closed without a greeting. At either limit a connection that has proved nothing to
  its owner is closed for the new one, so that none may be refused (`admission`);
* TLS is the port's, and so is who is let in: what has a policy of its own is not offered at a port
  that has another one, or none;
* what becomes of one export, or of its clients, changes nothing for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..nbd import Negotiated
from ..runtime import Runtime
from ..transport import ServerTLS
from .admission import Admission
from .handler import IExportHandler
from .handshake import ConnectionSettings
from .owner import IConnectionOwner, OwnedConnection
from .refused import RefusedConnection


class Offered(Protocol):
    """What can be added: a L{blockmig.Server} or a L{blockmig.Receiver}."""

    @property
    def owner(self) -> Any:
        """The L{IConnectionOwner} of its connections."""

    def factory(self) -> IProtocolFactory:
        """Makes the connections of its own ports."""

    def complete(self) -> Deferred[Any]:
        """Fires, or fails, when it has ended."""


class _Part(NamedTuple):
    """What was added.

    @ivar ended: fires, or fails, when it has ended; to be cancelled if it is removed before.
    """

    owner: Any
    ended: Deferred[Any]


class Exports:
    """Offers the exports of any number of servers and receivers, by their names, on one port.

    Listen with L{factory} on any number of endpoints. The servers and receivers remain the
    caller's: add and remove them at any time, and stop each as if it had a port of its own. To end
    it all, close the ports, call L{stop}, and stop the servers and receivers.

    @param max_connections: how many connections there may be at a time, to all exports together; 0
        for no limit.
    @param max_per_address: how many of them one address may have, as with L{blockmig.Server}.
    @param handshake_timeout: seconds that a connection has to choose an export; 0 for no limit.
    @param tls: how clients may, or must, speak TLS; None where it is not offered.
    @param runtime: the reactor and the system calls, the same as those of what is added; None for
        the real ones.
    """

    def __init__(
        self,
        *,
        max_connections: int = 0,
        max_per_address: int = 0,
        handshake_timeout: float = 30.0,
        tls: ServerTLS | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or Runtime.of()
        self._parts: dict[Any, _Part] = {}
        self._factory = ExportsFactory(
            ConnectionSettings(
                runtime=runtime,
                lookup=self._lookup,
                names=self.names,
                structured=True,
                handshake_timeout=handshake_timeout,
                refusal=self._refusal,
                tls=tls,
            ),
            self._owner_of,
            max_connections,
            max_per_address,
        )

    def factory(self) -> IProtocolFactory:
        """The protocol factory to listen with, the same one each time."""
        return self._factory

    def add(self, part: Offered) -> None:
        """Offer the exports of a server or a receiver, until it ends or is removed.

        @raise ValueError: one of its names is offered already, it speaks the old handshake, which
            has no names, it has a policy for TLS that is not this port's, or it has ended.
        @raise TypeError: C{part} is neither a server nor a receiver.
        """
        owner = getattr(part, "owner", None)
        if not IConnectionOwner.providedBy(owner):
            raise TypeError(f"{part!r} is neither a Server nor a Receiver")
        assert owner is not None
        settings: ConnectionSettings = owner.settings
        if settings.oldstyle is not None:
            raise ValueError("the old handshake has no export names: it needs a port of its own")
        if settings.tls not in (None, self._factory.settings.tls):
            raise ValueError("TLS is the port's: give the policy to Exports, and not to this")
        if not owner.accepts:
            raise ValueError("it has ended, or is about to: its exports are offered no more")
        for name in settings.names():
            if self._owner_of(name) is not None:
                raise ValueError(f"an export with the name {name!r} is offered already")
        for name in self.names():
            if settings.lookup(name) is not None:
                raise ValueError(f"what is offered already as {name!r} is a name of its own")
        part.factory()  # from now on it may have clients
        ended = part.complete()
        self._parts[part] = _Part(owner, ended)
        ended.addBoth(lambda _: self.remove(part))

    def remove(self, part: Offered) -> None:
        """Offer them no more; harmless where they are not.

        Clients that have chosen one of them stay with their server or receiver.
        """
        removed = self._parts.pop(part, None)
        if removed is not None:
            removed.ended.cancel()

    def names(self) -> list[str]:
        """The names that are offered now, those of side exports as well."""
        return [name for owner in self._open() for name in owner.settings.names()]

    @property
    def connections(self) -> int:
        """How many connections there are, to all exports together, and in their handshake."""
        return len(self._factory.connections)

    def stop(self) -> Deferred[None]:
        """Accept no connection any more, and close those that have not chosen an export.

        May be called any number of times. The servers and receivers go on with their clients.

        @return: fires when none is left that has not chosen an export.
        """
        return self._factory.stop()

    def _open(self) -> Iterator[Any]:
        """The owners whose exports are offered."""
        return (part.owner for part in list(self._parts.values()) if part.owner.accepts)

    def _owner_of(self, name: str) -> Any:
        """The owner of the export with that name; None where it is not offered."""
        for owner in self._open():
            if name in owner.settings.names():
                return owner
        # What is listed nowhere: each name has one owner at most (L{add}).
        for owner in self._open():
            if owner.settings.lookup(name) is not None:
                return owner
        return None

    def _lookup(self, name: str) -> IExportHandler | None:
        owner = self._owner_of(name)
        handler: IExportHandler | None = None if owner is None else owner.settings.lookup(name)
        return handler

    def _refusal(self, name: str) -> str:
        owner = self._owner_of(name)
        return str(owner.settings.refusal(name) or owner.refusal())


@implementer(IProtocolFactory, IConnectionOwner)
class ExportsFactory:
    """Makes the connections, and owns them until they have chosen an export.

    @param owner_of: returns the owner of the export with a name.
    @param most: how many connections there may be at a time, whoever owns them; 0 for no limit.
    @param most_of_one: how many of them may come from one address; 0 for no limit.
    @ivar connections: all that were made here and are not gone, whoever owns them.
    """

    noisy = False

    def __init__(
        self,
        settings: ConnectionSettings,
        owner_of: Callable[[str], Any],
        most: int,
        most_of_one: int = 0,
    ) -> None:
        self.settings = settings
        self.accepts = True
        self.connections: dict[OwnedConnection, None] = {}
        self._owner_of = owner_of
        self._admission = Admission(
            settings.runtime,
            lambda: self.connections,
            self._is_proved_to_its_owner,
            most,
            full="{most} clients are connected to its exports already",
            most_of_one=most_of_one,
        )
        self._waiting: list[Deferred[None]] = []

    def doStart(self) -> None:
        """Nothing to do."""

    def doStop(self) -> None:
        """Nothing to do."""

    def buildProtocol(self, addr: IAddress) -> IProtocol:
        """A connection; one that is refused is closed at once."""
        if not self.accepts or self._admission.admit(addr):
            return RefusedConnection()
        connection = _SharedConnection(self.settings, addr, self)
        self.connections[connection] = None
        return connection

    def stop(self) -> Deferred[None]:
        """Close what has chosen no export; fires when that is done."""
        self.accepts = False
        for connection in list(self.connections):
            if connection.owner is self:
                connection.close()
        stopped: Deferred[None] = Deferred()
        self._waiting.append(stopped)
        self._notify()
        return stopped

    def _notify(self) -> None:
        if any(connection.owner is self for connection in self.connections):
            return
        waiting, self._waiting = self._waiting, []
        for stopped in waiting:
            stopped.callback(None)

    # For the connections.

    def change_owner(self, connection: OwnedConnection, export: str) -> None:
        """C{connection} has chosen C{export}."""
        owner = connection.owner = self._owner_of(export)
        connection.settings = owner.settings
        owner.take(connection)
        self._notify()

    def gone(self, connection: OwnedConnection) -> None:
        """C{connection} is gone, whoever owned it."""
        del self.connections[connection]
        self._notify()

    # IConnectionOwner.

    def refusal(self) -> str:
        """Why one more connection is refused now, for the log as well; "" if it is not."""
        return self._admission.refusal()

    def is_proved(self, connection: OwnedConnection) -> bool:
        """None is that has chosen no export."""
        return False

    @staticmethod
    def _is_proved_to_its_owner(connection: Any) -> bool:
        return bool(connection.owner.is_proved(connection))

    def take(self, connection: OwnedConnection) -> None:
        """Never called: it gives its connections away, and gets none."""

    def session_began(self, connection: OwnedConnection) -> None:
        """Never called: a connection has another owner by then."""

    def lost(self, connection: OwnedConnection) -> None:
        """Nothing to do: see L{gone}."""


class _SharedConnection(OwnedConnection):
    """A connection that is yet to choose an export, and with it its owner."""

    def __init__(
        self, settings: ConnectionSettings, address: IAddress, maker: ExportsFactory
    ) -> None:
        super().__init__(settings, address, maker)
        self._maker = maker

    def begin_session(self, handler: IExportHandler, negotiated: Negotiated, data: bytes) -> None:
        """Belong to the owner of the export that was chosen, then be as any connection of its."""
        self._maker.change_owner(self, negotiated.export.name)
        super().begin_session(handler, negotiated, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._maker.gone(self)
