"""The bare loops: how fast two processes could be that do nothing but move the bytes.

`bare.py send FILE` and `bare.py copy|splice FILE SIZE`, with the path of a UNIX socket or a port.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

REQUEST = 2 << 20
F_SETPIPE_SZ = 1031


def send(address: str, path: str) -> None:
    """sendfile(2), to the end of the file."""
    with connect(address) as peer, open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < end:
            offset += os.sendfile(peer.fileno(), file.fileno(), offset, min(REQUEST, end - offset))


def copy(peer: socket.socket, file: int) -> None:
    """recv(2) into a buffer, pwrite(2)."""
    buffer = memoryview(bytearray(1 << 20))
    offset = 0
    while count := peer.recv_into(buffer):
        os.pwrite(file, buffer[:count], offset)
        offset += count


def splice(peer: socket.socket, file: int) -> None:
    """splice(2) through a pipe."""
    from_pipe, to_pipe = os.pipe()
    fcntl.fcntl(to_pipe, F_SETPIPE_SZ, 1 << 20)
    offset = 0
    while count := os.splice(peer.fileno(), to_pipe, REQUEST):
        while count:
            moved = os.splice(from_pipe, file, count, offset_dst=offset)
            count -= moved
            offset += moved


def connect(address: str) -> socket.socket:
    if address.isdigit():
        return socket.create_connection(("127.0.0.1", int(address)))
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(address)
    return peer


def listen(address: str) -> socket.socket:
    if address.isdigit():
        return socket.create_server(("127.0.0.1", int(address)))
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    return server


def main(how: str, address: str, path: str, size: str = "") -> None:
    if how == "send":
        send(address, path)
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file, int(size))
    peer, _ = listen(address).accept()
    (copy if how == "copy" else splice)(peer, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
