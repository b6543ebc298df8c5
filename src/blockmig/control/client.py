"""The client of a control socket; blocks, and needs no reactor."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from http.client import HTTPConnection, HTTPException
from typing import Any, Final

from .errors import ControlError, ControlLost, ControlRefused

# Bytes. A status with thousands of clients is smaller.
_MAX_ANSWER: Final = 16 << 20

# Seconds. A running server accepts connections at any time, however long its answers take.
_CONNECT_TIMEOUT: Final = 10.0


def ask(
    path: str, method: str, resource: str, body: Any = None, timeout: float | None = 10.0
) -> Any:
    """Send one request, and return its answer, decoded from JSON.

    @param path: the control socket.
    @param method: such as C{GET}.
    @param resource: such as C{/status}.
    @param body: encoded as JSON; None for no body.
    @param timeout: seconds to wait for the connection (at most 10), and then for each piece of the
        answer; None to wait for the answer until the server ends.
    @raise ControlRefused: the server answered with an error.
    @raise ControlLost: the request was sent, but no answer came.
    @raise ControlError: the request could not be sent, or the answer is not valid.
    """
    with _connect(
        path, _CONNECT_TIMEOUT if timeout is None else min(timeout, _CONNECT_TIMEOUT)
    ) as handle:
        handle.settimeout(timeout)
        connection = HTTPConnection("localhost", timeout=timeout)
        connection.sock = handle
        try:
            # A server refuses a body that is too large before it has read all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(
                    method,
                    resource,
                    None if body is None else json.dumps(body),
                    {"Content-Type": "application/json", "Connection": "close"},
                )
            response = connection.getresponse()
            text = response.read(_MAX_ANSWER + 1)
            if response.length:  # the answer is longer, or was cut off
                raise _not_a_control_socket(path)
        except TimeoutError:
            raise ControlLost(f"no answer on {path} within {timeout:g} s") from None
        except ConnectionError:
            raise ControlLost(
                f"{path}: the connection was closed without an answer; perhaps too many are open"
            ) from None
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror or error}") from None
        except HTTPException:
            raise _not_a_control_socket(path) from None
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        raise _not_a_control_socket(path) from None
    if response.status >= 400:
        message = answer.get("error") if isinstance(answer, dict) else None
        raise ControlRefused(str(message or f"HTTP status {response.status}"), response.status)
    return answer


def _not_a_control_socket(path: str) -> ControlError:
    return ControlError(f"what listens on {path} is not a control socket of blockmig")


def _connect(path: str, timeout: float) -> socket.socket:
    handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end = time.monotonic() + timeout
    try:
        handle.settimeout(timeout)
        while True:
            try:
                handle.connect(path)
                return handle
            except (
                BlockingIOError
            ):  # the queue is full, and connect(2) does not wait for room in it
                if time.monotonic() >= end:
                    raise TimeoutError from None
                time.sleep(0.02)
    except BaseException as error:
        handle.close()
        raise _connect_error(path, error, timeout) from None


def _connect_error(path: str, error: BaseException, timeout: float) -> BaseException:
    """C{error} as a L{ControlError} that says what is wrong."""
    match error:
        case FileNotFoundError():
            return ControlError(f"there is no control socket at {path}")
        case ConnectionRefusedError():
            if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
                return ControlError(f"{path} is not a socket")
            return ControlError(f"nobody listens on {path}: its server has ended")
        case PermissionError():
            return ControlError(f"{path} may only be used by its owner: permission denied")
        case TimeoutError():
            return ControlError(f"no connection to {path} within {timeout:g} s")
        case OSError() | ValueError():
            return ControlError(f"{path}: {getattr(error, 'strerror', None) or error}")
    return error
