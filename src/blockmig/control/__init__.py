"""Asking a running blockmig how things stand, and telling it what to do: JSON over HTTP.

Owns the control socket (a UNIX socket that only its owner may use), the HTTP on it, and the client
that asks. Knows nothing of what is asked for: `server.open_control` is given functions that answer.
Whoever only asks imports nothing of the server, and waits for no reactor.
"""

from .client import ask
from .errors import ControlError, ControlLost, ControlRefused

__all__ = [
    "ControlError",
    "ControlLost",
    "ControlRefused",
    "ask",
]
