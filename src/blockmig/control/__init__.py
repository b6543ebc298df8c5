"""The control socket of a running blockmig: status and commands as JSON over HTTP.

Owns the socket (a UNIX socket for root and the user who runs the command), the HTTP on it, and the
client. Knows nothing of what is requested: `server.open_control` is given the handlers. The client
imports nothing of the server, and no reactor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .client import ask
    from .errors import ControlError, ControlLost, ControlRefused
else:
    __getattr__ = lazily(
        __name__,
        {
            "ControlError": "errors",
            "ControlLost": "errors",
            "ControlRefused": "errors",
            "ask": "client",
        },
    )

__all__ = [
    "ControlError",
    "ControlLost",
    "ControlRefused",
    "ask",
]
