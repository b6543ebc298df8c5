"""What can go wrong on the wire, and whose fault it is.

* `RemoteProtocolError`: the peer broke the protocol; the connection cannot go on.
* `LocalProtocolError`: our caller asked for something that the protocol forbids; a bug of ours.
* `HandshakeRefused`: the peer refused, within the protocol; `TLSRefused`: it refused TLS.
* `errno_to_wire`: maps a local OSError to the error of a reply.
"""

from __future__ import annotations

import errno

from .constants import Errno, OptionReply


class ProtocolError(Exception):
    """A rule of the NBD protocol was broken."""


class LocalProtocolError(ProtocolError):
    """Our own side was about to break a rule of the protocol."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule of the protocol; nothing more that it sends can be understood."""


class NotNBD(RemoteProtocolError):
    """The first bytes show that the peer does not speak NBD."""


class HandshakeRefused(Exception):
    """The server answered an option with an error.

    @ivar reply: one of the errors of L{OptionReply} (or an unknown number).
    @ivar explanation: the server's explanation, perhaps empty.
    """

    def __init__(self, reply: int, explanation: str = "") -> None:
        try:
            name = OptionReply(reply).name
        except ValueError:
            name = f"error {reply:#x}"
        super().__init__(f"{name}: {explanation}" if explanation else name)
        self.reply = reply
        self.explanation = explanation


class TLSRefused(HandshakeRefused):
    """The server does not start TLS, without which the connection must not go on.

    @ivar explanation: what it said instead.
    """

    def __init__(self, explanation: str, reply: int = OptionReply.ERR_UNSUP) -> None:
        super().__init__(reply, explanation)
        self.args = (
            f"the server does not start TLS ({explanation}), and without it nothing is sent",
        )


_TO_WIRE = {
    errno.EPERM: Errno.EPERM,
    errno.EACCES: Errno.EPERM,
    errno.EROFS: Errno.EPERM,
    errno.ENOMEM: Errno.ENOMEM,
    errno.EINVAL: Errno.EINVAL,
    errno.ENOSPC: Errno.ENOSPC,
    errno.EDQUOT: Errno.ENOSPC,
    errno.EFBIG: Errno.ENOSPC,
    errno.EOVERFLOW: Errno.EOVERFLOW,
    errno.EOPNOTSUPP: Errno.ENOTSUP,
    errno.ESHUTDOWN: Errno.ESHUTDOWN,
}


def errno_to_wire(number: int | None) -> Errno:
    """The NBD error for the local error C{number}.

    An error for which the protocol has no number becomes EIO; EDQUOT and EFBIG become ENOSPC
    (protocol document, "Error values").
    """
    return _TO_WIRE.get(number or errno.EIO, Errno.EIO)


def describe_errno(number: int) -> str:
    """The name of an error in a reply, for log lines: C{ENOSPC}, or C{error 77}."""
    try:
        return Errno(number).name
    except ValueError:
        return f"error {number}"
