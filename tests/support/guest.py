"""A real machine, whose disk is somebody's NBD server: QEMU without KVM, with Debian's kernel.

Owns what the machine does, and what must be on its disk behind that. Three of its programs use the
disk at once, over and over, until they are told to stop:

* one writes files of all sizes, replaces them, deletes them and trims what is free; then it syncs,
  drops all caches, and compares every file with what it must be, and the files that were there
  before as well;
* one writes within one large file, past all caches, and compares that with its twin in memory;
* one writes block after block to a partition without a file system, past all caches, and tells when
  each was answered: between two of them the machine has waited for its disk. Each is in another
  64 KiB than the one before, so that a change that gets lost is covered by no other. It discards
  there, too.

What each file has to contain follows from a number and a version, here as there, so that nothing is
believed that the machine says of its own files but for which of them there are.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import lzma
import os
import random
import re
import socket
import stat
import struct
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from string import Template

from .disks import MIB, sparse_image
from .processes import Processes, until

KERNELS = "vmlinuz-*-cloud-amd64"
MODULES = ("virtio_pci", "virtio_blk", "ext4")

RAW = MIB, 32 * MIB
FILE_SYSTEM = 33 * MIB, 127 * MIB
"""The partitions: where they begin, and how long they are."""

SIZE = sum(FILE_SYSTEM)
GRANULARITY = 64 << 10
GRAINS = RAW[1] // GRANULARITY // 2
"""Those that are written to; as many behind them are full, and are discarded one by one."""

BLOCK = 4096
PULSES = GRAINS * GRANULARITY // BLOCK
PULSES_FOR_A_DISCARD = 10
RING = 16 * MIB
FILES = 24
BLOCKS = (0, 1, 3, 8, 40, 129, 700, 2500)
"""How large the files are, in 512 bytes."""

OF_THE_DISK = re.compile(r"vda|ext4|jbd2|i/o|blk|virtio|buffer|blocked for|rror", re.IGNORECASE)
"""What it may not warn of; but its clocks go wrong where this machine is busy."""

PATTERN = random.Random(5).randbytes(4 * MIB)
FULL_GRAIN = PATTERN[:GRANULARITY]

INIT = Template(r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /mnt /run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo

failed() {
    echo "FAILED $$*"
    : >/run/failed
    : >/run/stop
}

# The time since the start, in hundredths of a second.
now() {
    read -r now rest </proc/uptime
    now=$${now%.*}$${now#*.}
}

content() {  # NUMBER VERSION
    case $$(($$1 % $sizes)) in
        $blocks
    esac
    echo "file $$1 version $$2"
    dd if=/pattern bs=512 skip=$$((($$1 * 379 + $$2 * 101) % 4096)) count=$$blocks status=none
}

check() {
    md5sum -c -s /old.md5 || failed "an old file is not as it was"
    for n in $$(seq 0 $last); do
        eval "version=\$$v$$n"
        if [ "$$version" = 0 ]; then
            [ ! -e /mnt/work/$$n ] || failed "file $$n is there"
        else
            wanted=$$(content $$n $$version | md5sum)
            there=$$(md5sum </mnt/work/$$n)
            [ "$$wanted" = "$$there" ] || failed "file $$n is not version $$version"
            checked=$$((checked + 1))
        fi
    done
}

files() {
    round=0
    checked=0
    for n in $$(seq 0 $last); do eval v$$n=0; done
    while [ ! -e /run/stop ]; do
        round=$$((round + 1))
        for n in $$(seq 0 $last); do
            case $$(((n + round) % 4)) in
                0)
                    rm -f /mnt/work/$$n || failed "rm $$n"
                    eval v$$n=0 ;;
                1)
                    content $$n $$round >/mnt/work/$$n || failed "write $$n"
                    eval v$$n=$$round ;;
                3)
                    content $$n $$round >/mnt/work/new || failed "write new $$n"
                    dd if=/dev/null of=/mnt/work/new conv=notrunc,fsync status=none || failed fsync
                    mv /mnt/work/new /mnt/work/$$n || failed "mv $$n"
                    eval v$$n=$$round ;;
            esac
        done
        sync
        if [ $$((round % 3)) = 0 ]; then
            fstrim /mnt || failed fstrim
        fi
        echo 3 >/proc/sys/vm/drop_caches
        check
        echo "round $$round"
    done
    for n in $$(seq 0 $last); do
        eval "version=\$$v$$n"
        echo "version $$n $$version"
    done
    echo "checked $$checked"
}

ring() {
    i=0
    while [ ! -e /run/stop ]; do
        place="bs=$block skip=$$((i * 53 % 1000)) count=$$((1 + i % 16)) seek=$$((i * 2731 % 4080))"
        dd if=/pattern of=/mnt/ring conv=notrunc oflag=direct status=none $$place ||
            failed "write $$i to the ring"
        dd if=/pattern of=/ring conv=notrunc status=none $$place || failed "no memory"
        i=$$((i + 1))
        if [ $$((i % 100)) = 0 ]; then
            dd if=/mnt/ring bs=64k iflag=direct status=none | cmp - /ring ||
                failed "the ring is not as it was written, after $$i"
            echo "ring $$i"
        fi
    done
    echo "wrote $$i"
}

pulse() {
    n=0
    while [ ! -e /run/stop ]; do
        place=$$((n % $grains * 16 + n / $grains % 16))
        printf '%-${block}d' $$n | dd of=/dev/vda1 bs=$block seek=$$place conv=notrunc \
            oflag=direct status=none || failed "pulse $$n"
        now
        echo "pulse $$n $$now"
        if [ $$((n % $seldom)) = 0 ] && [ $$((n / $seldom)) -lt $grains ]; then
            blkdiscard -o $$((($grains + n / $seldom) * 65536)) -l 65536 /dev/vda1 ||
                failed "discard $$n"
        fi
        n=$$((n + 1))
        usleep 20000
    done
}

for module in /modules/*; do
    [ ! -e $$module ] || insmod $$module || failed "insmod $$module"
done
mount -t ext4 -o errors=continue /dev/vda2 /mnt || failed mount
dmesg -c >/dev/null
cp /mnt/ring /ring
mkdir /mnt/work
[ ! -e /run/failed ] || poweroff -f
echo READY
files &
one=$$!
ring &
other=$$!
pulse &
third=$$!
read -r line
: >/run/stop
wait $$one $$other $$third
umount /mnt || failed umount
dmesg -r | grep '^<[0-4]>' | sed 's/^/dmesg /'
if [ -e /run/failed ]; then echo RESULT BAD; else echo RESULT GOOD; fi
poweroff -f
""")


def content(number: int, version: int) -> bytes:
    """What a version of a file of the guest's contains."""
    start = (number * 379 + version * 101) % 4096 * 512
    size = BLOCKS[number % len(BLOCKS)] * 512
    return f"file {number} version {version}\n".encode() + PATTERN[start : start + size]


def ring(initial: bytes, writes: int) -> bytes:
    """The large file, after so many writes within it."""
    now = bytearray(initial)
    for i in range(writes):
        start = i * 53 % 1000 * BLOCK
        count = (1 + i % 16) * BLOCK
        position = i * 2731 % 4080 * BLOCK
        now[position : position + count] = PATTERN[start : start + count]
    return bytes(now)


# What the machine is made of.


def find_kernel() -> tuple[Path, Path]:
    """The newest kernel of Debian's, and the directory of its modules."""
    found = []
    for path in Path("/boot").glob(KERNELS):
        version = path.name.removeprefix("vmlinuz-")
        modules = Path("/lib/modules") / version
        if modules.is_dir():
            numbers = [int(number) for number in re.findall(r"\d+", version)]
            found.append((numbers, path, modules))
    assert found, f"no /boot/{KERNELS} with modules: the package linux-image-cloud-amd64 is needed"
    return max(found)[1:]


def find_modules(directory: Path) -> list[Path]:
    """The modules that the guest needs, in the order in which they are to be loaded."""

    def name(path: str) -> str:
        return Path(path).name.partition(".ko")[0].replace("-", "_")

    builtin = {name(line) for line in (directory / "modules.builtin").read_text().split()}
    needs = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        # Those that others there need come behind them.
        needs[name(module)] = [*reversed(others.split()), module]
    wanted: dict[str, None] = {}
    for module in MODULES:
        assert module in builtin or module in needs, f"{directory} has no {module}"
        if module not in builtin:
            wanted.update(dict.fromkeys(needs[module]))
    return [directory / path for path in wanted]


def unpacked(path: Path) -> bytes:
    """A module, as insmod takes it."""
    unpack = {".ko": bytes, ".xz": lzma.decompress, ".gz": gzip.decompress}
    assert path.suffix in unpack, f"nobody here can unpack {path}"
    return unpack[path.suffix](path.read_bytes())


def find_busybox() -> bytes:
    """One that needs no libraries."""
    for directory in ("/bin", "/usr/bin"):
        path = Path(directory) / "busybox"
        if path.exists() and b"/ld-linux" not in (program := path.read_bytes()):
            return program
    raise AssertionError("no static busybox: the package busybox-static is needed")


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive as the kernel reads it: modes and contents by name."""
    whole = bytearray()
    for number, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        whole += b"070701" + b"".join(b"%08X" % field for field in fields)
        for piece in (name.encode() + b"\0", data):
            whole += piece
            whole += bytes(-len(whole) % 4)
    return bytes(whole)


class Disk:
    """The guest's disk, as it is before the guest starts."""

    def __init__(self, room: Path) -> None:
        self.path = room / "disk"
        top = room / "files"
        old = top / "old"
        old.mkdir(parents=True)
        generator = random.Random(6)
        self.ring = generator.randbytes(RING)
        (top / "ring").write_bytes(self.ring)
        for number in range(40):
            size = generator.choice([0, 1, 100, 5000, 70_000, 300_000, MIB, 3 * MIB])
            (old / f"{number}").write_bytes(generator.randbytes(size))
        self.old = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in old.iterdir()}
        table = b"".join(
            struct.pack("<4xB3xII", 0x83, start // 512, length // 512)
            for start, length in (RAW, FILE_SYSTEM)
        )
        pieces = {446: table, 510: b"\x55\xaa", RAW[0] + GRAINS * GRANULARITY: FULL_GRAIN * GRAINS}
        sparse_image(self.path, SIZE, pieces)
        start, length = FILE_SYSTEM
        make = ["mke2fs", "-q", "-t", "ext4", "-E", f"offset={start}", "-d", top]
        subprocess.run([*make, self.path, f"{length // 1024}k"], check=True, timeout=60)


def initramfs(disk: Disk, modules: list[Path]) -> bytes:
    """All that the guest has but its disk."""
    executable, plain = stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    init = INIT.substitute(
        block=BLOCK,
        blocks="\n        ".join(f"{n}) blocks={size} ;;" for n, size in enumerate(BLOCKS)),
        last=FILES - 1,
        grains=GRAINS,
        seldom=PULSES_FOR_A_DISCARD,
        sizes=len(BLOCKS),
    )
    old = "".join(f"{sum}  /mnt/old/{name}\n" for name, sum in disk.old.items())
    files = {
        "bin": (stat.S_IFDIR | 0o755, b""),
        "bin/busybox": (executable, find_busybox()),
        "init": (executable, init.encode()),
        "modules": (stat.S_IFDIR | 0o755, b""),
        "old.md5": (plain, old.encode()),
        "pattern": (plain, PATTERN),
    }
    for number, path in enumerate(modules):
        files[f"modules/{number:02}-{path.name}"] = (plain, unpacked(path))
    return archive(files)


# The machine.


@dataclass
class Report:
    """What the guest said at its end.

    @ivar versions: of each file; 0 where there is none.
    @ivar writes: within the large file.
    @ivar pulses: the last of those.
    """

    versions: dict[int, int]
    checked: int
    rounds: int
    writes: int
    pulses: int


class Guest:
    """A running machine.

    @param uri: of its disk.
    """

    def __init__(self, processes: Processes, room: Path, disk: Disk, uri: str) -> None:
        kernel, modules = find_kernel()
        image = room / "initramfs"
        image.write_bytes(initramfs(disk, find_modules(modules)))
        self.lines: list[str] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(room / "serial"))
        listener.listen()
        self.running = processes.start(
            *("qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-reboot"),
            *("-display", "none", "-serial", f"unix:{room / 'serial'}"),
            *("-kernel", kernel, "-initrd", image),
            *("-append", "console=ttyS0 loglevel=4 panic=-1"),
            *("-drive", f"file={uri},format=raw,if=virtio,discard=unmap,cache=none"),
        )
        with listener:
            listener.settimeout(20)
            self._serial, _ = listener.accept()
        self._serial.settimeout(None)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.wait_line("READY", 120)
        self.wait_pulses(10)
        self._sockets = self._connections()

    def _listen(self) -> None:
        text = b""
        with contextlib.suppress(OSError):
            while data := self._serial.recv(65536):
                *lines, text = (text + data).split(b"\n")
                self.lines += [line.decode("utf-8", "replace").strip() for line in lines]

    def _connections(self) -> set[str]:
        """The sockets that QEMU has, by number: a new one is another connection."""
        links = []
        for path in Path(f"/proc/{self.running.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(path))
        return {link for link in links if link.startswith("socket:")}

    # What it says.

    def found(self, word: str) -> list[list[str]]:
        """The lines that begin with a word, without it."""
        return [line.split()[1:] for line in list(self.lines) if line.partition(" ")[0] == word]

    def quiet(self) -> str:
        """What it said, but for what it says all the time."""
        often = ("pulse", "round", "ring", "version")
        return "\n".join(line for line in self.lines if line.partition(" ")[0] not in often)

    def check(self) -> None:
        """Nothing is wrong so far."""
        assert not self.found("FAILED"), self.quiet()
        assert "rror" not in self.quiet(), self.quiet()

    def wait_line(self, word: str, timeout: float, count: int = 1) -> None:
        """Until it has said that so often."""

        def look() -> bool:
            self.check()
            there = len(self.found(word)) >= count
            assert there or self.running.status is None, self.quiet() + self.running.stderr
            return there

        until(look, timeout, f"{count} {word!r} of the guest")

    def wait_pulses(self, count: int, timeout: float = 60.0) -> None:
        """Until so many more blocks were written."""
        self.wait_line("pulse", timeout, len(self.found("pulse")) + count)

    def wait_rounds(self, count: int, timeout: float = 120.0) -> None:
        """Until so many more rounds of writing and comparing are over."""
        self.wait_line("round", timeout, len(self.found("round")) + count)

    @property
    def now(self) -> float:
        """The guest's clock, at the last block that it wrote; in seconds."""
        return int(self.found("pulse")[-1][1]) / 100

    def stalls(self, start: float = 0.0, end: float = float("inf")) -> list[float]:
        """How long each block took from the one before, in seconds, by the guest's clock.

        Only of those that were written at that time.
        """
        times = [int(fields[1]) / 100 for fields in self.found("pulse")]
        return [
            later - earlier for earlier, later in itertools.pairwise(times) if start < later <= end
        ]

    def finish(self) -> Report:
        """Have it stop, and switch itself off; it must have nothing to complain of."""
        self.check()
        assert self._connections() == self._sockets, "QEMU has connected anew"
        self._serial.sendall(b"stop\n")
        assert self.running.wait(120) == 0, self.quiet() + self.running.stderr
        self._listener.join(10)
        self.check()
        assert self.found("RESULT") == [["GOOD"]], self.quiet()
        about_the_disk = [
            line for line in self.found("dmesg") if OF_THE_DISK.search(" ".join(line))
        ]
        assert not about_the_disk, self.quiet()
        assert self.running.stderr == ""
        return Report(
            {int(number): int(version) for number, version in self.found("version")},
            int(self.found("checked")[0][0]),
            len(self.found("round")),
            int(self.found("wrote")[0][0]),
            len(self.found("pulse")) - 1,
        )


def check_disk(disk: Disk, path: Path, report: Report, room: Path) -> None:
    """All that the guest has written, and what was there before, is on this disk."""
    file_system = f"{path}?offset={FILE_SYSTEM[0]}"
    check = ["e2fsck", "-fn", file_system]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    top = room / f"{path.name}-files"
    top.mkdir()
    dump = ["debugfs", "-R", f"rdump / {top}", file_system]
    dumped = subprocess.run(dump, capture_output=True, text=True, timeout=60)
    assert len(dumped.stderr.splitlines()) == 1, dumped.stderr  # its version
    old = {
        name.name: hashlib.md5(name.read_bytes()).hexdigest() for name in (top / "old").iterdir()
    }
    assert old == disk.old
    there = {int(name.name): name.read_bytes() for name in (top / "work").iterdir()}
    wanted = {n: content(n, version) for n, version in report.versions.items() if version}
    assert there.keys() == wanted.keys()
    for number, data in there.items():
        assert data == wanted[number], f"file {number}: {data[:40]!r}, {wanted[number][:40]!r}"
    assert (top / "ring").read_bytes() == ring(disk.ring, report.writes)
    check_raw(path, report.pulses)


def check_raw(path: Path, last: int) -> None:
    """The partition without a file system: what was written, and what was discarded."""
    with path.open("rb") as file:
        for n in range(max(0, last - PULSES + 1), last + 1):
            file.seek(RAW[0] + n % GRAINS * GRANULARITY + n // GRAINS % 16 * BLOCK)
            assert file.read(BLOCK) == b"%-4096d" % n, f"block {n}"
        discarded = last // PULSES_FOR_A_DISCARD + 1
        file.seek(RAW[0] + GRAINS * GRANULARITY)
        for n in range(GRAINS):
            wanted = bytes(GRANULARITY) if n < discarded else FULL_GRAIN
            assert file.read(GRANULARITY) == wanted, f"{n}, of {discarded} that are discarded"
