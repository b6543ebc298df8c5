"""Our side of a connection to somebody's NBD server."""

from .destination import Destination

__all__ = ["Destination"]
