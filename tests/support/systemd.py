"""A host of a test's own, whose process 1 is systemd: for the units in `deploy`.

It has this machine's files below an overlay in memory, so that nothing is left of what happens to
them, a network with nothing but a loopback device, its own processes, and its own part of the tree
of control groups. systemd starts what it is told to start, and none of the machine's own units.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from . import REPOSITORY
from .processes import until

DEPLOY = Path(REPOSITORY) / "deploy"
_UNITS = "run/units"
_EMPTY = ("sysinit", "basic", "network-online", "multi-user", "sockets", "shutdown", "umount")

# $1: a directory for the overlay, $2 and so on: devices to have. The kernel's settings are the
# machine's, and so read-only.
_BOOT = r"""
set -eu
place=$1; shift
root=$place/root
mount -t tmpfs -o mode=755 none "$place"
mkdir "$place/upper" "$place/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" none "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 none "$root/sys/fs/cgroup" 2>/dev/null || true
mount -t cgroup2 none "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 none "$root/dev"
for device in /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$@"; do
    : >"$root$device"
    mount --bind "$device" "$root$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 none "$root/dev/pts"
mount -t tmpfs -o mode=1777 none "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for directory in $ELSEWHERE; do
    mkdir -p "$root$directory"
    mount --bind -o ro "$directory" "$root$directory"
done
mount -t tmpfs -o mode=755 none "$root/run"
mount -t tmpfs -o mode=1777 none "$root/tmp"
cp -a "$place.units" "$root/run/units"
cd "$root"
mkdir .old
pivot_root . .old
for directory in $READABLE; do chmod o+x "$directory" 2>/dev/null || true; done
rm -rf /etc/systemd/system/* /opt/blockmig /var/lib/blockmig /var/lib/private/blockmig /etc/blockmig
mkdir -p /etc/blockmig
ln -s "$PREFIX" /opt/blockmig
umount -l /.old
mount --make-rshared /
exec env -i container=blockmig-test SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units PATH="$PATH" \
    /lib/systemd/systemd --system --unit=test.target --log-target=console </dev/null
"""


def _cgroups() -> Path:
    """Where the second version of control groups is mounted, for us to make some."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].split("\n")[0]
            return Path(fields[4]) / own
    raise AssertionError("control groups (version 2) are needed for this test")


def _hidden(path: str) -> bool:
    """Whether ProtectHome= hides that."""
    return path.startswith(("/root/", "/home/", "/run/user/"))


def _mounted(path: str) -> bool:
    return os.stat(path).st_dev != os.stat("/").st_dev


class Host:
    """A host whose process 1 is systemd.

    @ivar pid: of its process 1.
    @ivar root: its files, as seen from here.
    """

    def __init__(self, process: subprocess.Popen[bytes], pid: int) -> None:
        self._process = process
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def run(self, *words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--uts", "--ipc"]
        return subprocess.run(
            [*enter, "--cgroup", "--", *map(str, words)],
            cwd="/",
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def checked(self, *words: str | Path, timeout: float = 120) -> str:
        """Run a command there that has to succeed; its stdout."""
        done = self.run(*words, timeout=timeout)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def path(self, path: str) -> Path:
        """A file there, for us to read or to write; no link in its path is absolute."""
        return self.root / path.lstrip("/")

    def drop_in(self, unit: str, name: str, text: str) -> None:
        """Add to a unit."""
        directory = self.root / _UNITS / f"{unit}.d"
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.conf").write_text(text)
        self.checked("systemctl", "daemon-reload")

    def unit(self, name: str, text: str) -> None:
        """Make a unit."""
        (self.root / _UNITS / name).write_text(text)
        self.checked("systemctl", "daemon-reload")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.checked("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def start(self, unit: str) -> None:
        """Start a unit, and wait until it has started."""
        done = self.run("systemctl", "start", unit)
        assert done.returncode == 0, f"{done.stderr}\n{self.log(unit)}\n{self.show(unit, 'Result')}"

    def log(self, unit: str) -> str:
        """What a unit has said."""
        path = self.path(f"/run/{unit}.log")
        return path.read_text() if path.exists() else "(nothing)"

    def wait_for(self, unit: str, name: str, value: str) -> None:
        """Wait until a property of a unit has that value."""
        try:
            until(lambda: self.show(unit, name) == value, 60)
        except AssertionError:
            raise AssertionError(
                f"{unit}: {name} is {self.show(unit, name)}, not {value}\n{self.log(unit)}"
            ) from None


@contextlib.contextmanager
def systemd_host(directory: Path, *devices: Path, units: bool = True) -> Iterator[Host]:
    """A host that runs until the end of the block.

    @param directory: for its files; not in the way of anybody else's.
    @param devices: those of this machine that it has.
    @param units: ours are there.
    """
    assert os.geteuid() == 0, "a host of its own can be made by root only"
    place = directory / "host"
    place.mkdir()
    units = directory / "host.units"
    units.mkdir()
    for path in DEPLOY.glob("*@.*") if units else ():
        shutil.copy(path, units)
    for name in _EMPTY:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "test.target").write_text("[Unit]\nDefaultDependencies=no\n")
    python = os.path.realpath(sys.executable)
    seen = [sys.prefix, python, sysconfig.get_path("stdlib"), str(REPOSITORY)]
    for kind in ("serve", "receive"):
        added = units / f"blockmig-{kind}@.service.d"
        added.mkdir()
        # There is no journal. A system call that the units do not allow only fails; here it kills,
        # so that every test shows that none is needed.
        lines = ["[Service]", "StandardOutput=append:/run/%n.log", "StandardError=inherit"]
        lines += ["SystemCallErrorNumber=kill"]
        # An interpreter that is somebody's own would be out of reach.
        lines += ["ProtectHome=read-only"] if any(map(_hidden, seen)) else []
        (added / "test.conf").write_text("\n".join([*lines, ""]))
    readable = {str(parent) for path in seen for parent in Path(path).parents}
    # The overlay has no other file system than that of /.
    elsewhere = {path for path in (sys.prefix, sys.base_prefix, str(REPOSITORY)) if _mounted(path)}
    environment = {
        **os.environ,
        "PREFIX": sys.prefix,
        "READABLE": " ".join(sorted(readable)),
        "ELSEWHERE": " ".join(sorted(elsewhere)),
    }
    group = _cgroups() / f"blockmig-test-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    log = directory / "host.log"
    script = f'echo $$ >"{group}/cgroup.procs"; exec "$@"'
    namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
    unshare = ["unshare", *namespaces, "--fork", "--kill-child", "--propagation", "private"]
    with_us = ["setpriv", "--pdeathsig", "KILL", "--"]
    words = [
        *with_us,
        "sh",
        "-c",
        script,
        "sh",
        *unshare,
        "--",
        "bash",
        "-c",
        _BOOT,
        "boot",
        str(place),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*words, *map(str, devices)], stdout=output, stderr=output, env=environment, cwd="/"
        )
    try:
        yield _booted(process, log)
    finally:
        process.kill()
        process.wait()
        until(lambda: _remove(group), 30)


def _booted(process: subprocess.Popen[bytes], log: Path) -> Host:
    def first() -> int | None:
        assert process.poll() is None, log.read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return None

    try:
        found = Host(process, until(first, 60))
        until(lambda: found.run("systemctl", "is-active", "test.target").returncode == 0, 60)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from None
    return found


def _remove(group: Path) -> bool:
    """Remove a control group and all in it, once nobody is left there."""
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(directory)
        except OSError:
            return False
    return True
