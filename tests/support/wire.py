"""A hand-made NBD client, for saying what no honest one would."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from .processes import until

READ, WRITE, DISC, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
EPERM, EINVAL, ENOSPC, ESHUTDOWN = 1, 22, 28, 108

FLAGS = struct.pack("!I", 3)


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    """An option, perhaps with a length that lies."""
    return b"IHAVEOPT" + struct.pack("!II", number, len(data) if length is None else length) + data


def go(name: str = "") -> bytes:
    """The GO option."""
    encoded = name.encode()
    return option(7, struct.pack("!I", len(encoded)) + encoded + struct.pack("!H", 0))


def request(
    command: int, offset: int = 0, length: int = 0, cookie: int = 7, flags: int = 0
) -> bytes:
    """A request's header."""
    return struct.pack("!IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def connect(uri: str, timeout: float = 10.0) -> socket.socket:
    """A connection to the server of an NBD URI."""
    parts = urlsplit(uri)
    if parts.scheme == "nbd+unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        connection.connect(parse_qs(parts.query)["socket"][0])
        return connection
    return socket.create_connection((parts.hostname, parts.port), timeout)


def wait_until_greeted(path: Path) -> None:
    """Wait until a server at the UNIX socket C{path} has said its first word.

    qemu-nbd binds its socket first, and opens and locks the image afterwards. Between bind(2) and
    listen(2) the socket is there and refuses.
    """

    def greeted() -> bool:
        try:
            with connect(f"nbd+unix:///?socket={path}") as connection:
                return read_exactly(connection, 8) == b"NBDMAGIC"
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    until(greeted)


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes; fewer only at the end of the connection."""
    data = b""
    while len(data) < count and (more := connection.recv(min(1 << 20, count - len(data)))):
        data += more
    return data


class Client:
    """A connection past its handshake."""

    def __init__(self, uri: str, name: str = "", timeout: float = 10.0) -> None:
        self.socket = connect(uri, timeout)
        assert read_exactly(self.socket, 18)[:16] == b"NBDMAGICIHAVEOPT"
        self.socket.sendall(FLAGS + go(name))
        self.size = 0
        while True:
            magic, _, reply, length = struct.unpack("!QIII", read_exactly(self.socket, 20))
            assert magic == 0x3E889045565A9
            data = read_exactly(self.socket, length)
            if reply == 1:
                break
            assert reply == 3, f"option reply {reply}: {data!r}"
            if data[:2] == b"\0\0":
                self.size = struct.unpack("!Q", data[2:10])[0]

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> tuple[int, int]:
        """The error and the cookie of the next simple reply."""
        magic, error, cookie = struct.unpack("!IIQ", read_exactly(self.socket, 16))
        assert magic == 0x67446698
        return error, cookie

    def ask(self, command: int, offset: int = 0, length: int = 0, payload: bytes = b"") -> int:
        """One request, and the error that answers it; a READ's payload is left to be read."""
        self.send(request(command, offset, length) + payload)
        return self.reply()[0]

    def closed(self) -> bool:
        """Whether the other end closed it, once all that it sent is read."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def client(uri: str, name: str = "") -> Iterator[Client]:
    """A client for a while."""
    made = Client(uri, name)
    try:
        yield made
    finally:
        made.close()
