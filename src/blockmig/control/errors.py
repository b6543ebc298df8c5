"""What can go wrong between the two ends of a control socket; the messages are single lines."""

from __future__ import annotations


class ControlError(Exception):
    """The control socket cannot be opened, or cannot be asked."""


class ControlLost(ControlError):
    """It was asked, and the answer never came; what was asked for may be done all the same."""


class ControlRefused(ControlError):
    """It was asked, and refused; raised by a handler, and again where its answer arrives.

    @ivar http_status: the HTTP status that tells of it, 400 to 599.
    """

    def __init__(self, message: str, http_status: int = 400) -> None:
        super().__init__(message)
        self.http_status = http_status
