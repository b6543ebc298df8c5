"""Asking a running blockmig how things stand, and telling it what to do: JSON over HTTP.

Owns the control socket (a UNIX socket that only its owner may use), the HTTP on it, and the client
that asks. Knows nothing of what is asked for: `open_control` is given functions that answer.
"""

from .client import ask
from .errors import ControlError, ControlLost, ControlRefused
from .server import ControlPort, Handler, Routes, open_control

__all__ = [
    "ControlError",
    "ControlLost",
    "ControlPort",
    "ControlRefused",
    "Handler",
    "Routes",
    "ask",
    "open_control",
]
