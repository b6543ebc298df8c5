"""The errors of a control socket; their messages are single lines."""

from __future__ import annotations


class ControlError(Exception):
    """The control socket cannot be opened, or cannot be reached."""


class ControlLost(ControlError):
    """The request was sent, but no answer came; it may have been carried out all the same."""


class ControlRefused(ControlError):
    """The request was refused; raised by a handler, and again by the client.

    @ivar http_status: the HTTP status of the answer, 400 to 599.
    """

    def __init__(self, message: str, http_status: int = 400) -> None:
        super().__init__(message)
        self.http_status = http_status
