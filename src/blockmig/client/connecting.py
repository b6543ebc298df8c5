"""Why a server could not be reached, in words that say what to look at."""

from __future__ import annotations

import errno
import os

from twisted.internet import error as errors

from ..nbd import NBDURI, BadURI, parse_uri
from ..syscalls import describe_error

_START = "start `blockmig receive` there first"


def describe_failed_connect(error: BaseException, uri: str) -> str:
    """Why a connection failed, to be continued: without a full stop.

    @param uri: that of the destination; "" if none is known.
    """
    try:
        where = parse_uri(uri)
    except BadURI:
        return describe_error(error)
    number = getattr(error, "osError", None) or getattr(error, "errno", None)
    if where.socket:
        return _at_socket(where.socket, error, number)
    if isinstance(error, errors.DNSLookupError):
        return f"the name {where.host!r} cannot be looked up (DNS): is it spelled right?"
    return _at_host(where, error, number)


def _at_socket(path: str, error: BaseException, number: int | None) -> str:
    if number == errno.ENOENT:
        return f"there is no socket {path} ({os.strerror(errno.ENOENT)}): {_START}"
    if isinstance(error, errors.ConnectionRefusedError):
        return f"nobody listens on the socket {path} (connection refused): {_START}"
    return f"{path}: {_reason(error, number)}"


def _at_host(uri: NBDURI, error: BaseException, number: int | None) -> str:
    host = f"[{uri.host}]" if ":" in uri.host else uri.host
    where = f"{host}:{uri.port}"
    if isinstance(error, errors.ConnectionRefusedError):
        return f"nobody listens on {where} (connection refused): {_START}, or is the port wrong?"
    if isinstance(error, errors.TimeoutError | errors.TCPTimedOutError):
        return f"{where} does not answer: is the host up, and the port open in its firewall?"
    if number == errno.EINVAL and uri.host.lower().startswith("fe80:") and "%" not in uri.host:
        return (
            f"{uri.host} is a link-local address: say through which interface, as in "
            f"nbd://[{uri.host}%25eth0]:{uri.port}/"
        )
    return f"{where}: {_reason(error, number)}"


def _reason(error: BaseException, number: int | None) -> str:
    """The system's words rather than Twisted's, if it was the system that failed."""
    return os.strerror(number) if isinstance(number, int) and number > 0 else describe_error(error)
