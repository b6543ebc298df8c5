"""One client that is forwarded to the server that takes over.

Owns the two sides of its connection: what came from the client before it could be passed on, and
back-pressure from either side to the other. When that server is there, and how it is reached, is up
to the `relay`, which also has the rules.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..nbd import Negotiated, TransmissionFlag
from ..transport import FileRegion, has_hung_up, is_readable
from .connection import ServerConnection
from .upstream import Upstream

_log = Logger()


@dataclass(slots=True)
class Flow:
    """Counts the bytes that were passed on.

    @ivar to_server: what clients have sent.
    @ivar to_clients: what the server has sent.
    """

    to_server: int = 0
    to_clients: int = 0


class RelayContext(typing.Protocol):
    """What a client needs of its relay."""

    @property
    def is_available(self) -> bool:
        """Whether the server is there."""

    @property
    def flow(self) -> Flow:
        """Counts what passes."""

    def make_upstream(self, client: RelayedClient, advertised: Negotiated | None) -> Upstream:
        """A connection for a client that was told C{advertised}, or was not greeted (None)."""

    def connect(self, upstream: Upstream) -> None:
        """Connect C{upstream}; that may fail at once."""

    def add(self, client: RelayedClient) -> None:
        """C{client} is to be forwarded."""

    def remove(self, client: RelayedClient) -> None:
        """C{client} is gone."""

    def client_connected(self, client: RelayedClient) -> None:
        """C{client} is being forwarded."""

    def client_answered(self) -> None:
        """The server has replied to a client that was held."""

    def unreachable(self, why: str) -> None:
        """The server does not answer (yet), or the connection for a client failed."""

    def check_disk_use(self) -> None:
        """A client may not need the disk here any more."""


class RelayedClient:
    """One client that is forwarded.

    @param client: its connection.
    """

    def __init__(self, relay: RelayContext, client: ServerConnection) -> None:
        self._relay = relay
        self._client = client
        self._backlog: list[bytes | FileRegion] = []
        self._upstream: Upstream | None = None
        self._is_relaying = False
        self._finished = False
        self._ended = False

    # From the client.

    def begin(self, unanswered: list[bytes | FileRegion] | None) -> None:
        """The client's connection is ours now."""
        if unanswered is not None:
            self._backlog = unanswered
        self._relay.add(self)
        if unanswered is None:
            self._close("a WRITE that it is sending has failed here")
            return
        if self._client.negotiated is None:
            # It waits for a greeting, so the only thing to be read is that it gave up.
            self._client.resume_reading()
        self.connect()

    def received(self, data: bytes | memoryview) -> None:
        """Send C{data} upstream, or keep it until that is possible, and then read nothing more."""
        if self._ended:
            return
        if self._is_relaying:
            assert self._upstream is not None
            self._relay.flow.to_server += len(data)
            self._upstream.send_view(data)
            if self._upstream.waiting:
                self._client.pause_reading()
        else:
            self._backlog.append(bytes(data))
            self._client.pause_reading()

    def finished(self) -> None:
        """The client sends no more."""
        self._finished = True
        if self._ended:
            return
        if self._is_relaying:
            assert self._upstream is not None
            self._upstream.finish()
        elif not self._backlog:
            self._close("")

    def drained(self) -> None:
        """The client has taken everything: read from the server again."""
        self._relay.check_disk_use()
        if self._is_relaying and self._upstream is not None:
            self._upstream.resume()

    def lost(self, reason: Failure) -> None:
        """The client is gone. If it closed in good order, what it sent still reaches the server."""
        self._ended = True
        self._backlog = []
        self._relay.remove(self)
        self._relay.check_disk_use()
        if self._upstream is None:
            return
        if self._is_relaying and reason.check(ConnectionDone):
            self._upstream.close()
        else:
            self._upstream.abort()

    def _close(self, why: str) -> None:
        self._ended = True
        self._backlog = []
        if why:
            _log.warn(
                "{peer}: cannot be forwarded ({why}); connection closed",
                event="not-passed-on",
                peer=self._client.peer,
                why=why,
            )
        if self._upstream is not None and not self._is_relaying:
            self._upstream.abort()
        self._client.close()

    # For the relay.

    @property
    def waits(self) -> bool:
        """Whether it is not forwarded yet."""
        return not self._is_relaying and not self._ended

    @property
    def was_held(self) -> bool:
        """Whether it was a client of the server here."""
        return self._client.negotiated is not None

    @property
    def waits_for_reply(self) -> bool:
        """Whether it was held in the middle of its work, and not merely idle."""
        return (
            self.waits
            and self.was_held
            and (bool(self._backlog) or is_readable(self._client.transport))
        )

    @property
    def uses_disk(self) -> bool:
        """Whether the disk here may have to be read for it: a reply, or a WRITE to be passed on."""
        if self._client.has_replies_due:
            return True
        if self._is_relaying:
            return self._upstream is not None and self._upstream.waiting
        return any(isinstance(item, FileRegion) for item in self._backlog)

    def give_up_if_gone(self) -> None:
        """Drop the client if it has hung up meanwhile."""
        if not self._is_relaying and not self._ended and has_hung_up(self._client.transport):
            self._close("it has hung up")

    # From the server, and what leads there.

    def connect(self) -> None:
        """Connect to the server, unless that is already done, or the server is not available."""
        if self._upstream is None and not self._ended and self._relay.is_available:
            self._upstream = self._relay.make_upstream(self, self._client.negotiated)
            self._relay.connect(self._upstream)

    def upstream_connected(self, upstream: Upstream, negotiated: Negotiated | None) -> None:
        """Connected: forward the client, if everything that it was told holds here."""
        advertised = self._client.negotiated
        if advertised is not None and negotiated is not None:
            if negotiated.listed:
                upstream.abort()
                return
            hung_up = has_hung_up(self._client.transport)
            why = "it has hung up" if hung_up else missing_feature(advertised, negotiated)
            if why:
                self._upstream = None
                upstream.disconnect()
                self._close(why)
                return
        self._is_relaying = True
        self._relay.client_connected(self)
        backlog, self._backlog = self._backlog, []
        self._relay.flow.to_server += sum(map(_length, backlog))
        upstream.send(backlog)
        self._relay.check_disk_use()
        if self._finished:
            upstream.finish()
        if upstream.waiting:
            self._client.pause_reading()
        else:
            self._client.resume_reading()

    def upstream_received(self, data: bytes) -> None:
        """Send C{data} to the client."""
        if not self._is_relaying or self._ended:
            return
        self._relay.flow.to_clients += len(data)
        if not self._client.answer(data):
            assert self._upstream is not None
            self._upstream.pause()
        if self.was_held:
            self._relay.client_answered()

    def upstream_drained(self) -> None:
        """The server has taken everything: read from the client again."""
        self._relay.check_disk_use()
        if not self._ended:
            self._client.resume_reading()

    def upstream_lost(self, why: str) -> None:
        """Before the client was forwarded nothing is lost; after that, its connection is."""
        upstream, self._upstream = self._upstream, None
        self._relay.check_disk_use()
        if self._ended:
            return
        if self._is_relaying:
            self._close(upstream.why if upstream is not None else "")
        else:
            self._relay.unreachable(why)

    def stop(self) -> None:
        if not self._ended:
            self._close("")


def _length(item: bytes | FileRegion) -> int:
    return item.length if isinstance(item, FileRegion) else len(item)


def missing_feature(advertised: Negotiated, upstream: Negotiated) -> str:
    """What a client was told here that does not hold upstream, in words; "" if all of it does."""
    ours, theirs = advertised.export, upstream.export
    if theirs.size != ours.size:
        return f"the disk has {theirs.size} bytes there but {ours.size} here"
    if theirs.read_only and not ours.read_only:
        return "the export is read-only there"
    lacking = int(ours.flags) & ~int(theirs.flags) & ~int(TransmissionFlag.READ_ONLY)
    if lacking:
        names = ", ".join(str(flag.name) for flag in TransmissionFlag(lacking))
        return f"{names} is not offered there"
    if theirs.minimum_block > ours.minimum_block:
        return f"the minimum block size is {theirs.minimum_block} bytes there"
    if theirs.maximum_payload < ours.maximum_payload:
        return f"the maximum payload is {theirs.maximum_payload} bytes there"
    if advertised.structured and not upstream.structured:
        return "structured replies are not offered there"
    if advertised.allocation and not upstream.allocation:
        return "base:allocation is not offered there, or has another context id"
    return ""
