"""A FUSE file system that shows a directory, and fails or hangs when told to.

Speaks the kernel's protocol (`linux/fuse.h`) itself, over /dev/fuse, so that nothing else is needed
than root. It runs as a process of its own: ``python failing_files.py BACKING MOUNTPOINT RULES``.
RULES is a file, looked at before each operation: JSON, a list of objects with

* C{op}: an operation, such as C{write}, C{fsync}, C{fsyncdir}, C{rename}, or C{any} of those that
  read or change a file;
* C{name}: what the path ends with (of a rename, the new one);
* C{error}: the errno to fail with; or, if it is 0, not to answer at all until the rule is gone. A
  caller that is killed gets EINTR then, as on a network file system;
* C{after}: how many such operations succeed first.

Nothing is kept in the page cache for longer than a file is open, and no attribute is, so that what
happens to the directory is seen here. There are neither subdirectories nor links.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

_HEADER = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
_IO = struct.Struct("<QQIIQII")
_STATFS = struct.Struct("<QQQQQIIII24x")
_INIT = struct.Struct("<IIIIHHIIHHII24x")

_ROOT: Final = 1
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_MAX_WRITE: Final = 1 << 20
_FORGET, _INTERRUPT, _DESTROY, _BATCH_FORGET = 2, 36, 38, 42
_OPERATIONS: Final = {
    1: "lookup",
    3: "getattr",
    4: "setattr",
    10: "unlink",
    12: "rename",
    14: "open",
    15: "read",
    16: "write",
    17: "statfs",
    18: "release",
    20: "fsync",
    25: "flush",
    26: "init",
    27: "opendir",
    28: "readdir",
    29: "releasedir",
    30: "fsyncdir",
    35: "create",
    43: "fallocate",
    45: "rename2",
}
_ON_CONTENT: Final = {"open", "read", "write", "fsync", "fallocate", "setattr"}
_SET_SIZE, _SET_MODE, _SET_MTIME, _SET_MTIME_NOW = 8, 1, 32, 256


class Request(NamedTuple):
    unique: int
    op: str
    node: int
    body: bytes


class Server:
    """The file system.

    @param device: the descriptor of /dev/fuse.
    @param backing: the directory that is shown.
    @param rules: the path of the rules.
    """

    def __init__(self, device: int, backing: str, rules: str) -> None:
        self._device = device
        self._backing = backing
        self._rules_path = rules
        self._rules: list[dict[str, Any]] = []
        self._rules_seen: tuple[int, int] = (0, 0)
        self._paths: dict[int, str] = {_ROOT: backing}
        self._open: dict[int, int] = {}  # a node's number: a descriptor that is open
        self._users: dict[int, int] = {}
        self._waiting: dict[int, Request] = {}

    def run(self) -> None:
        """Until it is unmounted, or the connection is aborted."""
        while True:
            ready, _, _ = select.select([self._device], [], [], 0.05 if self._waiting else None)
            if ready:
                try:
                    data = os.read(self._device, _MAX_WRITE + (1 << 16))
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                        continue
                    return  # ENODEV
                self._receive(data)
            for request in list(self._waiting.values()):
                if not self._hangs(request):
                    del self._waiting[request.unique]
                    self._handle(request)

    def _receive(self, data: bytes) -> None:
        length, opcode, unique, node, *_ = _HEADER.unpack_from(data)
        body = data[_HEADER.size : length]
        if opcode == _INTERRUPT:
            (interrupted,) = struct.unpack_from("<Q", body)
            if self._waiting.pop(interrupted, None) is not None:
                self._answer(interrupted, errno.EINTR)
            return
        if opcode in (_FORGET, _BATCH_FORGET, _DESTROY):
            return
        request = Request(unique, _OPERATIONS.get(opcode, ""), node, body)
        if self._hangs(request):
            self._waiting[unique] = request
        else:
            self._handle(request)

    # Rules.

    def _read_rules(self) -> None:
        status = os.stat(self._rules_path)
        seen = status.st_mtime_ns, status.st_ino
        if seen != self._rules_seen:
            with open(self._rules_path, encoding="utf-8") as file:
                self._rules = json.load(file)
            self._rules_seen = seen

    def _matching(self, request: Request) -> Iterator[dict[str, Any]]:
        self._read_rules()
        path = self._path_of(request)
        for rule in self._rules:
            is_op = rule["op"] == request.op or (rule["op"] == "any" and request.op in _ON_CONTENT)
            if is_op and path.endswith(rule["name"]):
                yield rule

    def _hangs(self, request: Request) -> bool:
        return any(not rule["error"] for rule in self._matching(request))

    def _error(self, request: Request) -> int:
        for rule in self._matching(request):
            if rule["after"] > 0:
                rule["after"] -= 1
            elif rule["error"]:
                return int(rule["error"])
        return 0

    def _path_of(self, request: Request) -> str:
        body = request.body
        if request.op in ("rename", "rename2"):
            return self._rename_of(request)[1]
        if request.op in ("lookup", "unlink"):
            return os.path.join(self._backing, os.fsdecode(body.rstrip(b"\0")))
        if request.op == "create":
            return os.path.join(self._backing, os.fsdecode(body[16:].rstrip(b"\0")))
        return self._paths.get(request.node, "")

    def _rename_of(self, request: Request) -> tuple[str, str]:
        names = request.body[8 if request.op == "rename" else 16 :].split(b"\0")
        old, new = (os.path.join(self._backing, os.fsdecode(name)) for name in names[:2])
        return old, new

    # Answers.

    def _answer(self, unique: int, error: int, data: bytes = b"") -> None:
        reply = _REPLY.pack(_REPLY.size + len(data), -error, unique)
        with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
            os.write(self._device, reply + data)

    def _handle(self, request: Request) -> None:
        act: Callable[[Request], bytes] | None = getattr(self, f"_do_{request.op}", None)
        if act is None:
            self._answer(request.unique, errno.ENOSYS)
            return
        error, data = self._error(request), b""
        if not error:
            try:
                data = act(request)
            except OSError as failed:
                error = failed.errno or errno.EIO
        self._answer(request.unique, error, data if not error else b"")

    def _attributes(self, node: int) -> bytes:
        descriptor = self._open.get(node)
        found = os.fstat(descriptor) if descriptor is not None else os.lstat(self._paths[node])
        times = [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns]
        return _ATTRIBUTES.pack(
            found.st_ino,
            found.st_size,
            found.st_blocks,
            *(each // 10**9 for each in times),
            *(each % 10**9 for each in times),
            found.st_mode,
            found.st_nlink,
            found.st_uid,
            found.st_gid,
            found.st_rdev,
            found.st_blksize,
            0,
        )

    def _entry(self, path: str) -> bytes:
        node = os.lstat(path).st_ino
        self._paths[node] = path
        return _ENTRY.pack(node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _opened(self, node: int, descriptor: int) -> bytes:
        if node in self._open:
            os.close(descriptor)
        else:
            self._open[node] = descriptor
        self._users[node] = self._users.get(node, 0) + 1
        return struct.pack("<QIi", node, 0, 0)

    def _do_init(self, request: Request) -> bytes:
        major, _, ahead, flags = struct.unpack_from("<IIII", request.body)
        wanted = flags & (_BIG_WRITES | _MAX_PAGES)
        pages = _MAX_WRITE // 4096
        return _INIT.pack(major, 36, ahead, wanted, 0, 0, _MAX_WRITE, 1, pages, 0, 0, 0)

    def _do_lookup(self, request: Request) -> bytes:
        return self._entry(self._path_of(request))

    def _do_getattr(self, request: Request) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(request.node)

    def _do_setattr(self, request: Request) -> bytes:
        valid, _, _, size, _, _, mtime, *rest = _SETATTR.unpack_from(request.body)
        path = self._paths[request.node]
        if valid & _SET_SIZE:
            descriptor = self._open.get(request.node)
            os.truncate(path if descriptor is None else descriptor, size)
        if valid & _SET_MODE:
            os.chmod(path, stat.S_IMODE(rest[4]))
        if valid & _SET_MTIME:
            now = time.time_ns()
            moment = now if valid & _SET_MTIME_NOW else mtime * 10**9 + rest[2]
            os.utime(path, ns=(now, moment))
        return self._do_getattr(request)

    def _do_open(self, request: Request) -> bytes:
        return self._opened(request.node, os.open(self._paths[request.node], os.O_RDWR))

    def _do_create(self, request: Request) -> bytes:
        _, mode, _, _ = struct.unpack_from("<IIII", request.body)
        path = self._path_of(request)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, stat.S_IMODE(mode))
        entry = self._entry(path)
        return entry + self._opened(os.fstat(descriptor).st_ino, descriptor)

    def _do_release(self, request: Request) -> bytes:
        node = request.node
        self._users[node] -= 1
        if not self._users[node]:
            os.close(self._open.pop(node))
        return b""

    def _do_read(self, request: Request) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(request.body)
        return os.pread(self._open[request.node], size, offset)

    def _do_write(self, request: Request) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(request.body)
        data = request.body[_IO.size : _IO.size + size]
        return struct.pack("<II", os.pwrite(self._open[request.node], data, offset), 0)

    def _do_statfs(self, _: Request) -> bytes:
        found = os.statvfs(self._backing)
        numbers = found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree
        return _STATFS.pack(*numbers, found.f_bsize, found.f_namemax, found.f_frsize, 0)

    def _do_fsync(self, request: Request) -> bytes:
        os.fsync(self._open[request.node])
        return b""

    def _do_flush(self, _: Request) -> bytes:
        return b""

    _do_releasedir = _do_fsyncdir = _do_flush

    def _do_opendir(self, _: Request) -> bytes:
        return struct.pack("<QIi", 0, 0, 0)

    def _do_readdir(self, request: Request) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(request.body)
        listed = b""
        for number, name in enumerate(sorted(os.listdir(self._backing)), 1):
            encoded = os.fsencode(name)
            entry = struct.pack("<QQII", 2, number, len(encoded), 0) + encoded
            entry += bytes(-len(entry) % 8)
            if number > offset and len(listed) + len(entry) <= size:
                listed += entry
        return listed

    def _do_unlink(self, request: Request) -> bytes:
        os.unlink(self._path_of(request))
        return b""

    def _do_rename(self, request: Request) -> bytes:
        old, new = self._rename_of(request)
        os.rename(old, new)
        self._paths[os.lstat(new).st_ino] = new
        return b""

    _do_rename2 = _do_rename


def main() -> None:
    backing, mount_point, rules = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"failing", os.fsencode(mount_point), b"fuse", 0, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    Server(device, backing, rules).run()


if __name__ == "__main__":
    main()
