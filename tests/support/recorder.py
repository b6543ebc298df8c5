"""A relay in front of a server that remembers who said what, and judges the server by it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from .conversation import Contents, Expected, Piece, Said, decode, tally
from .wire import connect

_MOST = 1 << 20


class Recorder:
    """CopyPasses every connection on to the server of an NBD URI, over the same kind of socket.

    What goes to the server is written down before it is passed on, and what comes from it before
    it is passed on: a request whose bytes stand behind an answer was made after that.

    @param uri: of the server.
    @param directory: for its own files.
    @param image: the server's disk.
    @param expected: what the server must say of it; as the disk is, unless given.
    @ivar uri: where clients are to go instead.
    @ivar conversations: what was said, once it was judged.
    """

    def __init__(
        self, uri: str, directory: Path, image: Path, expected: Expected | None = None
    ) -> None:
        self._to = uri
        self._image = image
        self._expected = expected or Expected(image.stat().st_size)
        self._contents = Contents(image, directory / f"{image.name}.should-be")
        self._lock = threading.Lock()
        self._when = 0
        self._all: list[list[Piece]] = []
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.conversations: list[Said] = []
        parts = urlsplit(uri)
        if parts.scheme == "nbd+unix":
            path = directory / f"{image.name}.recorded"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(64)
            self.uri = f"nbd+unix://{parts.path}?socket={path}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.uri = f"nbd://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = connect(self._to)
            far.settimeout(None)
            pieces: list[Piece] = []
            self._all.append(pieces)
            self._open += [near, far]
            for source, target, to_server in ((near, far, True), (far, near, False)):
                if source.family != socket.AF_UNIX:
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pump = (source, target, to_server, pieces)
                thread = threading.Thread(target=self._pump, args=pump, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _note(self, pieces: list[Piece], to_server: bool, data: bytes) -> None:
        with self._lock:
            self._when += 1
            pieces.append(Piece(self._when, to_server, data))

    def _pump(
        self, source: socket.socket, target: socket.socket, to_server: bool, pieces: list[Piece]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_MOST):
                self._note(pieces, to_server, data)
                target.sendall(data)
        self._note(pieces, to_server, b"")
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def verdict_of(self, *, timeout: float = 10.0) -> Counter[str]:
        """Wait for the end of all connections, and check what was said; returns the counts.

        @raise Broken: the server broke a rule.
        """
        self._stop_accepting()
        for thread in self._threads:
            thread.join(timeout)
            assert not thread.is_alive(), "a connection is open still"
        self.conversations = [decode(pieces, self._expected) for pieces in self._all]
        self._contents.play(self.conversations)
        self._contents.check(self._image)
        return tally(self.conversations)

    def _stop_accepting(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)

    def close(self) -> None:
        self._stop_accepting()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in self._open:
            end.close()
        self._contents.close()


@contextlib.contextmanager
def recorder(
    uri: str, directory: Path, image: Path, expected: Expected | None = None
) -> Iterator[Recorder]:
    """A recorder for a while; what was said is checked at the end of the block."""
    made = Recorder(uri, directory, image, expected)
    try:
        yield made
        if not made.conversations:
            made.verdict_of()
    finally:
        made.close()
