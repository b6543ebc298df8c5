"""Who may connect: networks for TCP, users for UNIX sockets.

Owns the list, and the connections that it has let in. What they do is up to whoever they belong to
(`guard` is put in front of any factory).

Rules:

* who is not on the list is closed when the connection is made, before a byte is sent or read, and
  before anything counts it: nobody gives way to it (`admission`);
* networks are for TCP, users for UNIX sockets; neither list says anything of the other kind. No
  list of a kind lets everybody in, an empty one nobody. An address of neither kind is let in only
  where there is no list of networks;
* a user is whom the kernel names (SO_PEERCRED of unix(7)), as of when it has connected. Where that
  is not to be had, it is on no list;
* when the networks are replaced, whoever is connected and no longer on the list is closed at once,
  as if its connection were lost: also a client that is forwarded to another server;
* a list that cannot be read changes nothing;
* refused connections are counted; logged in a bounded number of lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from twisted.logger import Logger
from zope.interface import implementer

from ..nets import Nets, parse_net
from ..transport import AwaitsUser, describe_address
from .limited_log import LimitedLog
from .refused import RefusedConnection

_log = Logger()

_MOST_LINES: Final = 10
"""A minute."""


class AllowList:
    """A list of who may connect.

    @param nets: addresses and networks, such as C{"192.0.2.7"} and C{"2001:db8::/64"}; None lets
        everybody in.
    @param users: numbers of users who may connect to a UNIX socket; None lets everybody in whom the
        mode of its file does.
    @ivar refused: how many connections were refused so far.
    @raise ValueError: one of C{nets} is none.
    """

    def __init__(
        self, nets: Iterable[str] | None = None, users: Iterable[int] | None = None
    ) -> None:
        self.refused = 0
        self._nets = _parsed(nets)
        self._users = None if users is None else frozenset(users)
        self._guarded: WeakSet[GuardedFactory] = WeakSet()

    @property
    def nets(self) -> list[str] | None:
        """The networks, sorted; None where everybody is let in."""
        return None if self._nets is None else self._nets.texts()

    @property
    def users(self) -> list[int] | None:
        """The numbers of the users, sorted; None where everybody is let in."""
        return None if self._users is None else sorted(self._users)

    def allows(self, address: IAddress) -> bool:
        """Whether a peer with that address may connect; of a UNIX socket L{allows_user} says it."""
        if self._nets is None or isinstance(address, UNIXAddress):
            return True
        if isinstance(address, IPv6Address):
            return self._nets.contains(address.host, address.scopeID or 0)
        return isinstance(address, IPv4Address) and self._nets.contains(address.host)

    def allows_user(self, user: int | None) -> bool:
        """Whether a user may connect to a UNIX socket.

        @param user: None where that is not known.
        """
        return self._users is None or user in self._users

    def replace(self, nets: Iterable[str] | None) -> int:
        """Let in only these from now on, and close whoever is connected and not among them.

        @param nets: as for the list itself.
        @return: how many were closed.
        @raise ValueError: one of C{nets} is none; then nothing has changed.
        """
        self._nets = _parsed(nets)
        return sum(guarded.drop() for guarded in list(self._guarded))

    def guard(
        self, factory: IProtocolFactory, seconds: Callable[[], float] = time.monotonic
    ) -> IProtocolFactory:
        """A factory to listen with instead of C{factory}: of the connections that the list allows.

        @param seconds: the clock; of the reactor, or of a test.
        """
        guarded = GuardedFactory(factory, self, seconds)
        self._guarded.add(guarded)
        return guarded


def _parsed(nets: Iterable[str] | None) -> Nets | None:
    return None if nets is None else Nets(map(parse_net, nets))


@implementer(IProtocolFactory)
class GuardedFactory:
    """Makes the connections of another factory, of those who are allowed.

    Its connections are those of the other factory, without a wrapper: they look at their transport.
    """

    noisy = False

    def __init__(
        self, factory: IProtocolFactory, allow: AllowList, seconds: Callable[[], float]
    ) -> None:
        self._factory = factory
        self._allow = allow
        self._refused = LimitedLog(seconds, _MOST_LINES)
        self._dropped = LimitedLog(seconds, _MOST_LINES)
        self._connections: WeakKeyDictionary[Any, IAddress] = WeakKeyDictionary()

    def doStart(self) -> None:
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """A connection; one that is closed at once where its peer is not on the list."""
        if isinstance(addr, UNIXAddress):
            # Only its transport knows the user.
            if self._allow.users is None:
                return self._let_in(addr)
            return AwaitsUser(partial(self._of_user, addr))
        if self._allow.allows(addr):
            return self._let_in(addr)
        return self._refuse(describe_address(addr))

    def _of_user(self, address: IAddress, user: int | None) -> IProtocol | None:
        """A connection of a user at a UNIX socket; None where the factory makes none."""
        if self._allow.allows_user(user):
            return self._let_in(address)
        return self._refuse("a user that is not known" if user is None else f"the user {user}")

    def _let_in(self, address: IAddress) -> IProtocol | None:
        """A connection of the factory; None where it makes none."""
        protocol = self._factory.buildProtocol(address)
        if protocol is not None:
            self._connections[protocol] = address
        return protocol

    def _refuse(self, peer: str) -> IProtocol:
        self._allow.refused += 1
        if self._refused.has_room():
            _log.info(
                "{peer}: refused: not on the allow-list{others}",
                event="not-allowed",
                peer=peer,
                others=self._refused.others(),
            )
        return RefusedConnection()

    def drop(self) -> int:
        """Close whoever is connected and not on the list; returns how many that are."""
        gone = [
            protocol
            for protocol, address in list(self._connections.items())
            if _is_connected(protocol) and not self._allow.allows(address)
        ]
        for protocol in gone:
            address = self._connections.pop(protocol)
            if self._dropped.has_room():
                _log.info(
                    "{peer}: is no longer on the allow-list; connection closed{others}",
                    event="dropped",
                    peer=describe_address(address),
                    others=self._dropped.others(),
                )
            _abort(protocol)
        return len(gone)


def _is_connected(protocol: Any) -> bool:
    """Whether the connection is there still; what is gone may not have been collected yet."""
    return protocol.transport is not None and getattr(protocol.transport, "connected", True)


def _abort(protocol: Any) -> None:
    """Close a connection at once: by its own means, if it has any."""
    abort = getattr(protocol, "abort", None) or protocol.transport.abortConnection
    abort()
