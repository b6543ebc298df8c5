"""A relay between two ends of a connection: it remembers what passed, and can cut it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator


class Relay:
    """Passes every connection on to C{port} on this host.

    @param cuts: for each connection in turn, the number of bytes (both ways together) after which
        it is cut; connections after those are left alone.
    @param reset: cut with a reset instead of in good order.
    """

    def __init__(
        self, port: int, cuts: list[int] | None = None, reset: bool = False, keep: bool = False
    ) -> None:
        self.seen = bytearray()
        self.passed = 0
        self.cut = 0
        self.connections = 0
        self._to = port
        self._cuts = list(cuts or ())
        self._reset = reset
        self._keep = keep
        self._lock = threading.Lock()
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
            self.connections += 1
            left = [self._cuts.pop(0)] if self._cuts else None
            self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pump, args=(source, target, left))
                thread.daemon = True
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, target: socket.socket, left: list[int] | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    over = False
                    if left is not None:
                        if left[0] == 0:  # the other direction was the one that cut
                            return
                        data = data[: left[0]]
                        left[0] -= len(data)
                        over = left[0] == 0
                    self.passed += len(data)
                    if self._keep:
                        self.seen += data
                target.sendall(data)
                if over:
                    self._sever(source, target)
                    return
            target.shutdown(socket.SHUT_WR)

    def _sever(self, *ends: socket.socket) -> None:
        self.cut += 1
        for end in ends:
            with contextlib.suppress(OSError):
                if self._reset:
                    linger = struct.pack("ii", 1, 0)
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                # Also wakes the other direction's thread, without which close would not close.
                end.shutdown(socket.SHUT_RD if self._reset else socket.SHUT_RDWR)
            end.close()

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
def relay(
    port: int, cuts: list[int] | None = None, reset: bool = False, keep: bool = False
) -> Iterator[Relay]:
    """A relay for a while."""
    made = Relay(port, cuts, reset, keep)
    try:
        yield made
    finally:
        made.close()
