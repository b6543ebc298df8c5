"""What a connection asks of whoever it is served for, and tells them.

The server of a disk and the receiver of a migration both serve connections of the same kind; what
tells them apart is their handler.
"""

from __future__ import annotations

from typing import Any

from zope.interface import Attribute, Interface


class IExportHandler(Interface):
    """Somebody who decides what may be done with an export, and is told what was.

    C{connection} is a L{blockmig.server.ServerConnection}. Calls come in the reactor's thread.
    """

    export = Attribute("The L{blockmig.nbd.Export} that is offered.")
    disk = Attribute("The L{IDisk} behind it.")
    access = Attribute(
        "The L{blockmig.server.DiskAccess} that the disk's clients share; None where each request "
        "goes the plain way."
    )
    allows_fast_path = Attribute(
        "Whether small reads and writes need not be admitted now: L{admit} and L{done} are then "
        "not called for those that L{access} can carry out at once."
    )
    held = Attribute(
        "Whether clients are held: nothing is taken from a connection that has only just "
        "negotiated, until it is released."
    )

    def admit(connection: Any, request: Any) -> Any:
        """Whether a request, which the protocol allows, is to be tried now.

        @return: 0, or the error to answer it with (L{blockmig.nbd.Errno}); or a Deferred of
            either, until which nothing more is taken from the connection.
        """

    def done(connection: Any, request: Any) -> Any:
        """An admitted request succeeded; its reply is about to be sent. Not called for READ.

        @return: None; or a Deferred that the reply waits for. If it fails, so does the request.
        """

    def failed(connection: Any, request: Any, error: BaseException | None) -> None:
        """An admitted request failed in the disk, and is answered with an error."""

    def needs_flush(connection: Any) -> bool:
        """Whether a FLUSH from that connection may have anything to make durable."""

    def may_be_silent(connection: Any) -> bool:
        """Whether a connection that says nothing for long is to be left alone."""

    def disconnected(connection: Any) -> None:
        """The client sent DISC, and nothing of it is being carried out any more.

        The handler must close the connection, now or later.
        """

    def gone(connection: Any) -> None:
        """The connection is no more, disconnected before or not, and nothing of it is under way."""
