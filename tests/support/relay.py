"""A relay between two ends of a connection that remembers what passed."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

Change = Callable[[bool, bytes], bytes]
"""Called with whether something goes to the server, and with it; returns what is passed on."""


class Relay:
    """Passes every connection on to C{port} on this host.

    @param change: what somebody in the middle does to what passes.
    @param end_after: bytes after which the streams of all connections end, once, in either
        direction, and in good order as far as TCP knows; None for never.
    """

    def __init__(
        self, port: int, change: Change = lambda _, data: data, end_after: int | None = None
    ) -> None:
        self.seen = bytearray()
        self.ended = 0
        self._change = change
        self._end_after = end_after
        self._lock = threading.Lock()
        self._to = port
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                pump = (source, target, source is near)
                thread = threading.Thread(target=self._pump, args=pump, daemon=True)
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, target: socket.socket, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                data, over = self._take(self._change(to_server, data))
                target.sendall(data)
                if over:
                    self._end()
            target.shutdown(socket.SHUT_WR)

    def _take(self, data: bytes) -> tuple[bytes, bool]:
        """What of C{data} is passed on, and whether the streams end behind it."""
        with self._lock:
            left = len(data) if self._end_after is None else self._end_after - len(self.seen)
            over = self._end_after is not None and left <= len(data)
            if over:
                data, self._end_after = data[: max(left, 0)], None
            self.seen += data
        return data, over

    def _end(self) -> None:
        """End all streams; what is still said is heard by nobody."""
        self.ended += 1
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Cut every connection that there is."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut everything that is left."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(5)


@contextlib.contextmanager
def relay(port: int, **options: Any) -> Iterator[Relay]:
    """A relay for a while."""
    made = Relay(port, **options)
    try:
        yield made
    finally:
        made.close()
