"""What can go wrong on the wire, by whose fault it is.

* `RemoteProtocolError`: the peer broke the protocol; the connection cannot go on.
* `LocalProtocolError`: our caller asked for something the protocol forbids; a bug of ours.
* `HandshakeRefused`: the peer kept to the protocol and said no.
* `errno_to_wire`: a local OSError as the error a reply may carry.
"""

from __future__ import annotations

import errno

from .constants import Errno, OptionReply


class ProtocolError(Exception):
    """The conversation broke a rule of NBD."""


class LocalProtocolError(ProtocolError):
    """Our own side was about to break a rule of NBD."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule of NBD; nothing more it sends can be understood."""


class NotNBD(RemoteProtocolError):
    """The very first bytes show that the peer does not speak NBD."""


class HandshakeRefused(Exception):
    """The server answered an option with an error.

    @ivar reply: the answer, one of the errors of L{OptionReply} (or a number unknown to us).
    @ivar explanation: what the server said of it in words, perhaps empty.
    """

    def __init__(self, reply: int, explanation: str = "") -> None:
        try:
            name = OptionReply(reply).name
        except ValueError:
            name = f"error {reply:#x}"
        super().__init__(f"{name}: {explanation}" if explanation else name)
        self.reply = reply
        self.explanation = explanation


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
    """The error of a reply that tells a client of the local error C{number}.

    Whatever the protocol has no number for travels as EIO; EDQUOT and EFBIG travel as ENOSPC
    (protocol document, "Error values").
    """
    return _TO_WIRE.get(number or errno.EIO, Errno.EIO)


def describe_errno(number: int) -> str:
    """The name of an error that came in a reply, for log lines: C{ENOSPC}, or C{error 77}."""
    try:
        return Errno(number).name
    except ValueError:
        return f"error {number}"
