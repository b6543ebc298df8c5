"""A disk to clients: the server's side of NBD connections.

Owns connections, one by one; who may do what on them, and what it means, is its handlers' affair.
"""

from .connection import ConnectionSettings, ServerConnection

__all__ = ["ConnectionSettings", "ServerConnection"]
