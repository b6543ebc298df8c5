"""The interface between a connection and whoever decides about its export.

The server of a disk and the receiver of a migration serve the same kind of connection; only their
handlers differ.
"""

from __future__ import annotations

from typing import Any

from zope.interface import Attribute, Interface


class IExportHandler(Interface):
    """Decides what may be done with an export, and is notified of what was done.

    C{connection} is a L{blockmig.server.ServerConnection}. All calls are made in the reactor's
    thread.
    """

    export = Attribute("The L{blockmig.nbd.Export} that is offered.")
    disk = Attribute("The L{IDisk} behind it.")
    access = Attribute(
        "The L{blockmig.server.DiskAccess} that the disk's clients share; None where a connection "
        "uses the disk directly."
    )
    allows_fast_path = Attribute(
        "Whether small reads and writes need not be admitted now: L{admit} and L{done} are then "
        "not called for those that L{access} can carry out at once."
    )
    held = Attribute(
        "Whether clients are held: a connection that has just negotiated is then held too, until "
        "it is released."
    )

    def admit(connection: Any, request: Any) -> Any:
        """Whether a request that the protocol allows may be carried out now.

        @return: 0, or the error to answer it with (L{blockmig.nbd.Errno}); or a Deferred of
            either, and nothing more is read from the connection until it fires.
        """

    def done(connection: Any, request: Any) -> Any:
        """An admitted request succeeded; its reply is about to be sent. Not called for READ.

        @return: None; or a Deferred that the reply waits for. If it fails, the request fails.
        """

    def failed(connection: Any, request: Any, error: BaseException | None) -> None:
        """The disk failed an admitted request, which is answered with an error."""

    def needs_flush(connection: Any) -> bool:
        """Whether a FLUSH from that connection may have anything to make durable."""

    def may_be_silent(connection: Any) -> bool:
        """Whether a connection is to be kept although it has been silent for long."""

    def progress(connection: Any) -> int | None:
        """How far the connection is with what it is there for; changes only while it gets further.

        None while nothing of the kind is expected: then it must only not be silent.
        """

    def disconnected(connection: Any) -> None:
        """The client sent DISC, and none of its requests is being carried out any more.

        The handler must close the connection, now or later.
        """

    def gone(connection: Any) -> None:
        """The connection is gone, with or without a DISC, and no request of it is in progress."""


class IBatchHandler(IExportHandler):
    """One that need not be asked about each small change (L{FastChanges})."""

    def begin_batch(connection: Any) -> bool:
        """Whether changes of C{connection} may be made now, without L{admit}: ones that the
        protocol allows, and that end before the disk's last byte.

        If so, the first one is about to be made, and L{end_batch} follows before anything else.
        """

    def end_batch(connection: Any, requests: Any, failed: bool) -> None:
        """These changes were made, perhaps none; they are about to be answered.

        @param failed: so was another one, which failed; L{failed} is called next.
        """
