"""Forwards clients to the server that serves their disk now, so that they see only a pause.

Owns the clients that are forwarded (`relayed`), each with a connection to that server (the
`upstream`) of its own, and the `search` for it. The client's side is a `ServerConnection` in its
forwarding phase: it still sends what was queued for the client, and after that everything that the
upstream sends.

Rules:

* no client is forwarded until a server has answered that is no longer the migration's receiver: it
  does not list the receiver's side export, where the name of that is known;
* a client that has negotiated with us is forwarded only if everything that it was told also holds
  upstream. If anything is missing there its connection is closed, so that it can connect anew.
  Its stream is not changed in any other way;
* everything that a client sent and we have not answered is forwarded first, unchanged, each byte
  once: a WRITE that was partly taken off the wire is put together again from the disk and memory;
* a client that connects later is forwarded from its first byte, and waits until that is possible.
  Where either side speaks TLS it negotiates with us before that, as those did who were held: TLS
  ends here, on either side, so that neither has less of it than was asked for;
* a client that hung up while it waited is dropped together with its requests: it may already be
  repeating them on another connection, and its old requests must not overtake the new ones;
* back-pressure: nothing is read from one side that the other does not take. Never more is kept than
  one read of the reactor's, and the rest of an unanswered request;
* a client that has closed its sending side may still receive. A server that has closed its sending
  side is gone, since it can answer nothing any more: its client's connection is closed as well;
* a failed connection attempt loses nothing, and is repeated for ever. Where a connection is lost
  that was made, its client loses its own, and is forwarded again when it comes back;
* the disk here is needed only until the last client that was held has taken our replies, and the
  other server what that client had sent here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..client import Destination
from ..nbd import ClientHandshake, Negotiated
from ..runtime import BoundedThreads, Runtime
from .connection import ServerConnection
from .relayed import Flow, RelayedClient
from .search import Search
from .upstream import Upstream, UpstreamUser

_log = Logger()

_REPORT_INTERVAL: Final = 60.0


class Relay:
    """Forwards clients to the server that has their disk now.

    Give it to L{Server.relay <blockmig.server.Server.relay>}.

    @param destination: where that server is, or will be, and the export's name there.
    @param receiver_export: the name of an export that only the migration's receiver lists; None if
        there is none.
    @param linger: seconds for which clients may still come when the last one has left; C{math.inf}
        for ever.
    @param awaits_first: a first client may come at any time, however long that takes: there was
        none yet that could leave.
    @param runtime: reactor, threads and system calls; None for the real ones.
    @ivar linger: as given.
    @ivar awaits_first: as given.
    @ivar flow: counts the bytes that were passed on.
    @ivar pause: seconds from the hold until the server that takes over replied to a client; None
        until then. If none was waiting for a reply, until one could have been replied to.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        receiver_export: str | None = None,
        linger: float = 0.0,
        awaits_first: bool = False,
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or Runtime.of()
        self._threads = BoundedThreads(runtime.threads)
        self._runtime = replace(runtime, threads=self._threads)
        self.linger = linger
        self.awaits_first = awaits_first
        self.flow = Flow()
        self.pause: float | None = None
        self._uri = destination.uri
        self._endpoint = destination.endpoint
        self._tls = destination.tls
        self._export = destination.export
        self._receiver_exports = () if receiver_export is None else (receiver_export,)
        self._reactor = runtime.reactor
        self._clients: dict[RelayedClient, None] = {}
        self._disk_users: dict[RelayedClient, None] = {}
        self._disk_unused: Deferred[None] | None = None
        self._held_at: float | None = None
        self._is_reply_awaited = False
        self._reported_at = float("-inf")
        self._announced = False
        self._why = ""
        self._stopped = False
        self._search = Search(
            self._connection,
            self.connect,
            lambda: ClientHandshake(self._export, self._receiver_exports),
            is_waited_for=lambda: any(client.waits for client in self._clients),
            found=self._became_available,
            not_found=self._not_found,
            reactor=runtime.reactor,
        )

    def start(self, held_at: float | None = None) -> None:
        """Begin to look for the server.

        @param held_at: when the clients were held, by the reactor's clock; None if they were not.
        """
        self._held_at = held_at
        self._search.start()

    def forward(self, client: ServerConnection) -> None:
        """Forward a client that is held and idle, or was not greeted, as soon as possible."""
        client.forward(RelayedClient(self, client))

    def stop(self) -> None:
        """Give up: close every client, and stop looking."""
        self._stopped = True
        self._search.stop()
        for client in list(self._clients):
            client.stop()

    def idle(self) -> Deferred[None]:
        """Fires when no thread is reading what a client had sent from the disk."""
        return self._threads.idle()

    def disk_unused(self) -> Deferred[None]:
        """Fires when nothing here needs the disk any more; to be called once, when every client
        that was held is forwarded."""
        self._disk_unused = unused = Deferred[None]()
        self.check_disk_use()
        return unused

    def status(self) -> dict[str, Any]:
        """What passes, for people and scripts: sizes in bytes, times in seconds."""
        waiting = sum(client.waits for client in self._clients)
        return {
            "to": self._uri,
            "available": self._search.is_available,
            "clients": len(self._clients) - waiting,
            "waiting": waiting,
            "bytes_to_server": self.flow.to_server,
            "bytes_to_clients": self.flow.to_clients,
            "last_error": self._why,
            "pause": None if self.pause is None else round(self.pause, 4),
            "linger": "forever" if math.isinf(self.linger) else self.linger,
        }

    @property
    def can_greet(self) -> bool:
        """Whether a client may be greeted by that server itself: not where TLS, which the client
        knows nothing of, comes before."""
        return self._tls is None

    # RelayContext, for the clients.

    @property
    def is_available(self) -> bool:
        """The server was there when it was last heard of."""
        return self._search.is_available

    def make_upstream(self, client: RelayedClient, advertised: Negotiated | None) -> Upstream:
        """A connection for a client that was told C{advertised}, or was not greeted (None)."""
        handshake: ClientHandshake | None = None
        if advertised is not None:
            handshake = ClientHandshake(
                self._export,
                self._receiver_exports,
                structured=advertised.structured,
                allocation=advertised.allocation,
            )
        return self._connection(client, handshake)

    def _connection(self, user: UpstreamUser, handshake: ClientHandshake | None) -> Upstream:
        return Upstream(user, handshake, self._runtime, self._tls)

    def connect(self, upstream: Upstream) -> None:
        """Connect C{upstream}; that may fail at once."""
        upstream.connect(self._endpoint)

    def add(self, client: RelayedClient) -> None:
        """C{client} is to be forwarded."""
        self._clients[client] = None
        if client.uses_disk:
            self._disk_users[client] = None
        self._search.hurry()

    def remove(self, client: RelayedClient) -> None:
        """C{client} is gone."""
        self._clients.pop(client, None)

    def client_connected(self, client: RelayedClient) -> None:
        """C{client} is being forwarded."""
        self._search.reached()
        if client.was_held and not self._is_reply_awaited:
            self._end_pause()

    def client_answered(self) -> None:
        """The server has replied to a client that was held."""
        self._end_pause()

    def _end_pause(self) -> None:
        if self._held_at is None:
            return
        self.pause, self._held_at = self._reactor.seconds() - self._held_at, None
        _log.info(
            "clients have waited for {milliseconds:.0f} ms: from the hold to the first reply of "
            "the server that takes over",
            event="client-pause",
            milliseconds=1000 * self.pause,
        )

    def check_disk_use(self) -> None:
        """A client may not need the disk here any more."""
        if self._disk_users:
            self._disk_users = {client: None for client in self._disk_users if client.uses_disk}
        if self._disk_unused is not None and not self._disk_users:
            unused, self._disk_unused = self._disk_unused, None
            unused.callback(None)

    def unreachable(self, why: str) -> None:
        """The connection for a client failed."""
        self._search.vanished(why)

    # For the search.

    def _not_found(self, why: str) -> None:
        self._why = why
        if self._stopped:
            return
        # Clients that wait are not read from, so nothing else notices that they hung up.
        for client in list(self._clients):
            client.give_up_if_gone()
        now = self._reactor.seconds()
        if now - self._reported_at >= _REPORT_INTERVAL:
            self._reported_at = now
            self._announced = False
            _log.info(
                "the server that takes over does not answer yet ({why}); trying again",
                event="not-there-yet",
                why=why,
            )

    def _became_available(self) -> None:
        if not self._announced:
            self._announced = True
            _log.info(
                "the server that takes over answers; forwarding {clients} client(s)",
                event="passing-on",
                clients=len(self._clients),
            )
        if self._held_at is not None:
            self._is_reply_awaited = any(client.waits_for_reply for client in self._clients)
            if not any(client.was_held for client in self._clients):
                self._held_at = None  # there is nobody who could see a pause
        for client in list(self._clients):
            client.connect()
