"""All targets: importing this fills L{TARGETS}."""

from . import control, documents, texts, whole, wire  # noqa: F401
from .target import TARGETS

__all__ = ["TARGETS"]
