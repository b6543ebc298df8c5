"""What an operator may find on disk, made by real migrations that die, and what `inspect` says.

``python -m tests.docs.handoff_table`` prints the table of docs/handoff.md; a test compares the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blockmig.migration.records.files import Kind
from blockmig.migration.records.verdict import examine, verdict_of, verdict_of_pair
from tests.support import REPOSITORY
from tests.support.processes import BLOCKMIG, Processes

SIZE = 300_000
DYING = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from tests.support.dying import main
main()
"""


@contextlib.contextmanager
def processes(room: Path) -> Iterator[Processes]:
    """For a while; none is left."""
    made = Processes(room)
    try:
        yield made
    finally:
        made.finish()


@dataclass(frozen=True)
class Hosts:
    """Two hosts, and what is to be seen of their disks."""

    room: Path

    @property
    def source(self) -> Path:
        return self.room / "source" / "web.img"

    @property
    def destination(self) -> Path:
        return self.room / "destination" / "web.img"

    def migrate(self, *options: str, dies: tuple[str, ...] = ()) -> None:
        """A migration; the sender dies at the call that C{dies} tells of, the receiver after it."""
        for path in (self.source, self.destination):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not self.source.exists():
            self.source.write_bytes(os.urandom(SIZE))
        with processes(self.room) as started:
            receiver = started.receive(self.destination, "--size", SIZE)
            start = [sys.executable, "-c", DYING, *dies] if dies else [BLOCKMIG]
            sender = started.run(*start, "send", *options, self.source, receiver.uri)
            if dies:
                assert sender.status == 86, sender.stderr
                receiver.kill()
            else:
                assert sender.status == 0, sender.stderr
                assert receiver.wait() == 0, receiver.stderr

    def receiver_dies(self, *options: str, dies: tuple[str, ...]) -> None:
        """A migration whose receiver dies at a call; the sender, which looks for it, after it."""
        for path in (self.source, self.destination):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.source.write_bytes(os.urandom(SIZE))
        with processes(self.room) as started:
            start = (sys.executable, "-c", DYING, *dies, "receive")
            receiver = started.receive(self.destination, "--size", SIZE, command=start)
            sender = started.start(BLOCKMIG, "send", *options, self.source, receiver.uri)
            assert receiver.wait() == 86, receiver.stderr
            sender.kill()

    def send_on(self, *, dies: tuple[str, ...] = ()) -> None:
        """Move what was received on to a third host."""
        self._send_to_third(self.destination, dies=dies)

    def send_again(self, *options: str, dies: tuple[str, ...]) -> None:
        """Send what was migrated away, and kept, once more, to a third host."""
        self._send_to_third(self.source, "--overwrite", "--id", "again", *options, dies=dies)

    def _send_to_third(self, disk: Path, *options: str, dies: tuple[str, ...] = ()) -> None:
        there = self.room / "third" / "web.img"
        there.parent.mkdir()
        with processes(self.room) as started:
            receiver = started.receive(there, "--size", SIZE)
            start = [sys.executable, "-c", DYING, *dies] if dies else [BLOCKMIG]
            sender = started.run(*start, "send", disk, receiver.uri, *options)
            assert sender.status == (86 if dies else 0), sender.stderr

    def forget(self, path: Path) -> None:
        with processes(self.room) as started:
            started.checked(BLOCKMIG, "forget", path)


def begun(hosts: Hosts) -> None:
    """All was sent, and nothing of that is recorded."""
    hosts.receiver_dies("--unlink", dies=("open", ".INCOMPLETE.tmp", "2", "before"))


def copied(hosts: Hosts) -> None:
    hosts.migrate("--unlink", dies=("rename", ".MIGRATING", "2", "after"))


def deleted(hosts: Hosts) -> None:
    hosts.migrate("--unlink", dies=("unlink", "web.img", "1", "after"))


def told(hosts: Hosts) -> None:
    hosts.migrate("--unlink", dies=("rename", ".MIGRATING", "3", "after"))


def done(hosts: Hosts) -> None:
    hosts.migrate("--unlink")


def remembered(hosts: Hosts) -> None:
    hosts.migrate("--unlink", dies=("rename", ".MIGRATED", "1", "after"))


def done_and_replaced(hosts: Hosts) -> None:
    """By files that were there already."""
    others = [hosts.room / "one", hosts.room / "another"]
    for other in others:
        other.write_bytes(os.urandom(SIZE))
    done(hosts)
    for other, path in zip(others, (hosts.source, hosts.destination), strict=True):
        other.rename(path)


def forgotten(hosts: Hosts) -> None:
    done(hosts)
    for path in (hosts.source, hosts.destination):
        hosts.forget(path)


def forgotten_at_the_source(hosts: Hosts) -> None:
    done(hosts)
    hosts.forget(hosts.source)


def received(hosts: Hosts) -> None:
    hosts.receiver_dies("--unlink", dies=("rename", ".RECEIVED", "1", "after"))


def going_on(hosts: Hosts) -> None:
    done(hosts)
    hosts.send_on(dies=("rename", ".MIGRATING", "1", "after"))


def gone_on(hosts: Hosts) -> None:
    done(hosts)
    hosts.send_on()


def marked(hosts: Hosts) -> None:
    hosts.migrate(dies=("rename", ".MIGRATED", "1", "after"))


def kept(hosts: Hosts) -> None:
    hosts.migrate()


def kept_and_written(hosts: Hosts) -> None:
    kept(hosts)
    with hosts.source.open("r+b") as file:
        file.write(b"new")
    os.utime(hosts.source)


def kept_and_sent_again(hosts: Hosts) -> None:
    kept(hosts)
    hosts.send_again(dies=("rename", ".MIGRATING", "2", "after"))


def kept_and_deleted_for_another(hosts: Hosts) -> None:
    kept(hosts)
    hosts.send_again("--unlink", dies=("unlink", "web.img", "1", "after"))


def waiting(hosts: Hosts) -> None:
    hosts.migrate(dies=("rename", ".MIGRATING", "1", "before"))


def _listening_only(hosts: Hosts) -> None:
    hosts.destination.parent.mkdir(parents=True)
    hosts.source.parent.mkdir(parents=True)
    hosts.source.write_bytes(os.urandom(SIZE))
    with processes(hosts.room) as started:
        started.receive(hosts.destination, "--size", SIZE).kill()


def begun_and_removed(hosts: Hosts) -> None:
    begun(hosts)
    hosts.source.unlink()


def deleted_and_replaced(hosts: Hosts) -> None:
    """By a file that was there already: one that is made now may get the inode again, or not."""
    other = hosts.room / "other"
    other.write_bytes(os.urandom(SIZE))
    deleted(hosts)
    other.rename(hosts.source)


def deleted_and_replaced_in_its_inode(hosts: Hosts) -> None:
    """The same inode, given again to a file that was made later; the record is made to say so."""
    deleted(hosts)
    hosts.source.write_bytes(os.urandom(SIZE))
    record = Path(f"{hosts.source}.MIGRATING")
    found = json.loads(record.read_text())
    found["identity"] = f"inode {hosts.source.stat().st_ino}, born 1"
    record.write_text(json.dumps(found))


def torn(hosts: Hosts) -> None:
    begun(hosts)
    record = Path(f"{hosts.destination}.INCOMPLETE")
    record.write_text(record.read_text()[:100])


def accepted(hosts: Hosts) -> None:
    deleted(hosts)
    with processes(hosts.room) as started:
        started.checked(BLOCKMIG, "accept", hosts.destination, "--i-have-checked-the-source")


def foreign(hosts: Hosts) -> None:
    """nbdcopy flushes, and is killed before it disconnects: a client by hand does just that."""
    begun(hosts)
    record = Path(f"{hosts.destination}.INCOMPLETE")
    found = json.loads(record.read_text())
    found.update(identified=False, phase="copied", side_export=False)
    found["source"] = {"host": "", "disk": "", "address": "192.0.2.4:51234"}
    record.write_text(json.dumps(found))


def copied_of_what_was_sent_again(hosts: Hosts) -> None:
    """The third host is the one to look at."""
    kept_and_sent_again(hosts)
    there = hosts.destination.parent
    shutil.rmtree(there)
    (hosts.room / "third").rename(there)


SOURCE: list[Callable[[Hosts], None]] = [
    _listening_only,
    begun,
    copied,
    deleted,
    deleted_and_replaced,
    deleted_and_replaced_in_its_inode,
    marked,
    kept,
    kept_and_written,
    kept_and_sent_again,
    kept_and_deleted_for_another,
    begun_and_removed,
    remembered,
    done,
    done_and_replaced,
    forgotten,
]
DESTINATION: list[Callable[[Hosts], None]] = [
    _listening_only,
    begun,
    copied,
    copied_of_what_was_sent_again,
    told,
    received,
    done,
    done_and_replaced,
    going_on,
    gone_on,
    forgotten,
    foreign,
    accepted,
    torn,
]
BOTH: list[Callable[[Hosts], None]] = [
    begun,
    copied,
    deleted,
    told,
    received,
    remembered,
    done,
    marked,
    kept,
    kept_and_sent_again,
    forgotten_at_the_source,
    forgotten,
]


@contextlib.contextmanager
def situation(make: Callable[[Hosts], None]) -> Iterator[Hosts]:
    """Two hosts after C{make}."""
    room = Path(tempfile.mkdtemp(prefix="table-"))
    try:
        hosts = Hosts(room)
        make(hosts)
        yield hosts
    finally:
        shutil.rmtree(room)


def files(path: Path) -> str:
    """What `ls` shows of a disk, with what each record says."""
    shown = []
    for file in sorted(path.parent.iterdir(), key=lambda file: file.name):
        note = ""
        kind = file.suffix.removeprefix(".")
        if kind in (Kind.INCOMPLETE, Kind.MIGRATING):
            try:
                record = json.loads(file.read_text())
            except ValueError:
                note = " (torn)"
            else:
                words = [record["phase"]]
                words += ["retired"] if record["retired"] else []
                words += ["told"] if record["told"] else []
                words += ["sent again"] if kind == Kind.INCOMPLETE and record["sent_again"] else []
                note = f" ({', '.join(words)})"
        elif kind == Kind.MIGRATED:
            note = _is_earlier(path)
        elif file == path and file.stat().st_size == 0:
            note = " (0 bytes)"
        elif file == path:
            note = _is_another(path)
        shown.append(f"`{file.name}`{note}")
    return ", ".join(shown) or "nothing"


def _is_earlier(path: Path) -> str:
    """Whether MIGRATED is of another migration than MIGRATING."""
    migrated, migrating = (
        json.loads(record.read_text())["migration"] if record.exists() else ""
        for record in (Path(f"{path}.{kind}") for kind in (Kind.MIGRATED, Kind.MIGRATING))
    )
    return " (of an earlier migration)" if migrating not in ("", migrated) else ""


def _is_another(path: Path) -> str:
    kinds = (Kind.MIGRATING, Kind.MIGRATED, Kind.RECEIVED)
    records = [Path(f"{path}.{kind}") for kind in kinds]
    record = next((record for record in records if record.exists()), None)
    if record is None:
        return ""
    says = json.loads(record.read_text())
    found, written = says["identity"], says["written"]
    status = path.stat()
    if written and written != f"{status.st_size} {status.st_mtime_ns}":
        return " (written since)"
    if f"inode {path.stat().st_ino}," not in found:
        return " (another file, made since)"
    return "" if found == examine(str(path)).identity else " (another file, in the same inode)"


def general(text: str, room: Path) -> str:
    """Without what differs from run to run."""
    text = text.replace(f"{room}/source/", "/var/lib/images/")
    text = text.replace(f"{room}/destination/", "/var/lib/images/")
    text = text.replace(f"{room}/third/", "/srv/third/")
    text = text.replace(f"{os.uname().nodename}:", "HOST:").replace(
        f"on {os.uname().nodename} run", "on HOST run"
    )
    text = re.sub(r"\(?nbd://[\d.]+:\d+/\)?", "(nbd://…)", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)
    return text.replace("|", "\\|")


def rows() -> Iterator[str]:
    """The tables' lines."""
    for title, makers, side in (
        ("On the source", SOURCE, "source"),
        ("On the destination", DESTINATION, "destination"),
    ):
        yield f"### {title}"
        yield ""
        yield "| `ls` shows | this copy is | do |"
        yield "| --- | --- | --- |"
        for make in makers:
            with situation(make) as hosts:
                path = getattr(hosts, side)
                verdict = verdict_of(examine(str(path)))
                line, advice = (general(t, hosts.room) for t in (verdict.line, verdict.advice))
                yield f"| {files(path)} | **{line}** | {advice} |"
        yield ""
    yield "### With both in front of you"
    yield ""
    yield "| on the source | on the destination | canonical is the |"
    yield "| --- | --- | --- |"
    for make in BOTH:
        with situation(make) as hosts:
            verdict = verdict_of_pair(examine(str(hosts.source)), examine(str(hosts.destination)))
            which = Path(verdict.canonical).parent.name or "unknown"
            yield f"| {files(hosts.source)} | {files(hosts.destination)} | **{which}** |"


def main() -> None:
    print("\n".join(rows()))


if __name__ == "__main__":
    main()
