"""Where the records of a disk are: beside a file, or in a state directory for a device.

Owns the records' paths, and the links by which the state directories of this host are found again;
but no record. It needs no open disk: the disk may be gone.

Rules (design, section 2: R10):

* records of a device are named after a path of it, and found by the device: by the identity that
  they have recorded, whichever node leads to it. Only where that decides nothing does the name;
* records that are certainly of another disk are found under their name only where there are none
  of this disk: the caller sees then that they are about another one;
* what is certainly about another disk gives way to new records of that name: it is set aside, and
  gets a name of its own, the old one with a colon and a UUID. Such a name is no path; it is found
  by the device, as any other;
* what was interrupted when only some records of a device were set aside is finished by whoever
  looks for records next, before they are read: none of them hides what the others say;
* a state directory other than the usual one is noted in that, so that records in it are found
  without its name. So are those below root's, which systemd makes for services. Only what is proved
  to be of this disk counts there; and what may not be read, so that the caller sees that;
* a note counts only if root has written it, or the user of this process;
* who may write in a state directory has a say in every device that its records name. So its owner
  does only where somebody has chosen it for this command, or root for a service
  (L{decides_by_owner}).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from ..syscalls import SYSTEM, SystemCalls, describe_error
from .errors import DiskRefused
from .identities import (
    boot_id,
    device_identity,
    is_inside,
    is_whole,
    same_disk,
)
from .trusted import Untrusted, open_regular

ROOTS_DIRECTORY: Final = "/var/lib/blockmig"
"""Where root's records of devices are by default."""

_ASIDE: Final = ":"  # not in any path that is escaped
_ELSEWHERE: Final = "elsewhere"
_LONGEST: Final = 65536
_OF_SERVICES: Final = "/var/lib/private"
"""Where systemd keeps the directories of services that have a user only while they run; there are
links to them in C{/var/lib}."""


def default_state_directory() -> str:
    """Where the records of block devices are kept: C{/var/lib/blockmig} for root.

    For others C{$XDG_STATE_HOME/blockmig}, by default C{~/.local/state/blockmig}.
    """
    if os.geteuid() == 0:
        return ROOTS_DIRECTORY
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "blockmig")


def record_path(path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM) -> str:
    """What the paths of the records of the disk at C{path} begin with.

    Beside a file, whether or not it still exists, and beside the link's target where C{path} is a
    symbolic link. In a state directory for a device: where there are records of that device, or
    else named after C{path}, with C{-} for C{/}.

    @param state_directory: where records of devices are looked for first, and new ones kept; None
        for the default.
    @raise DiskRefused: C{path} cannot be examined.
    """
    if is_device(path):
        return device_record_path(path, _number(path), state_directory, system)
    directory = os.path.abspath(state_directory or default_state_directory())
    beside = os.path.realpath(path)
    if _status(path) is None:
        # A device that is gone is known only by its records; a link to it may still be there.
        with _refusing(path):
            return _path_of_departed(path, beside, directory, system) or beside
    return beside


def _path_of_departed(path: str, beside: str, directory: str, system: SystemCalls) -> str:
    """The path of the records of a device that is gone; "" where there are none.

    @param beside: what the path leads to.
    """
    divided = _finish_setting_aside(directory, system)
    known = _stems(directory, system)
    for name in (os.path.abspath(path), beside):
        if (stem := _escape(name)) in divided:
            raise DiskRefused(_several(path, directory, divided[stem]))
        if stem in known:
            return os.path.join(directory, stem)
    for name in (os.path.abspath(path), beside):
        aside = sorted(stem for stem in known if _is_aside(stem, _escape(name)))
        if len(aside) > 1:
            raise DiskRefused(_several(path, directory, aside))
        if aside:
            return os.path.join(directory, aside[0])
    return ""


def state_path(path: str, directory: str) -> str:
    """What the paths of new records of the device at C{path} in that state directory begin with."""
    return os.path.join(directory, _escape(path))


def aside_path(records: str, migration: str) -> str:
    """What the paths of records begin with that are set aside.

    @param records: what they began with.
    @param migration: UUID of the migration by which they are told from others of that name.
    """
    return f"{records}{_ASIDE}{migration}"


def is_aside(records: str) -> bool:
    """Whether the paths of a device's records that are set aside begin so."""
    return _ASIDE in os.path.basename(records)


def paths_aside(records: str, system: SystemCalls = SYSTEM) -> list[str]:
    """What the paths of those begin with that were set aside from C{records}."""
    directory, name = os.path.split(records)
    stems = sorted(stem for stem in _stems(directory, system) if _is_aside(stem, name))
    return [os.path.join(directory, stem) for stem in stems]


def _is_aside(stem: str, name: str) -> bool:
    return stem.startswith(name + _ASIDE)


def device_record_path(
    path: str,
    number: int | None,
    state_directory: str | None = None,
    system: SystemCalls = SYSTEM,
    sys: str = "/sys",
) -> str:
    """As L{record_path}, for a device of which also the number (C{st_rdev}) is known.

    @param path: after which new records are named.
    @param sys: where sysfs is.
    @raise DiskRefused: there are records of it by several names; or that cannot be found out.
    """
    directory = os.path.abspath(state_directory or default_state_directory())
    with _refusing(path):
        return _path_of(_Device(path, number, system, sys), path, directory, system)


def _path_of(device: _Device, path: str, directory: str, system: SystemCalls) -> str:
    """As L{device_record_path}.

    @raise OSError: a directory cannot be read.
    """
    divided = _finish_setting_aside(directory, system)
    stems = _stems(directory, system)
    answers = {stem: device.is_subject(os.path.join(directory, stem)) for stem in sorted(stems)}
    own = _escape(os.path.abspath(path))
    proved = [stem for stem in answers if answers[stem] is True]
    named = [stem for stem in answers if answers[stem] is None and device.has_name(stem)]
    for same in (proved, named):
        if own in same and own not in divided:
            return os.path.join(directory, own)
        if len(same) > 1:
            raise DiskRefused(_several(path, directory, same))
        if same:
            return os.path.join(directory, same[0])
    for other in _others(directory, system):
        divided = _finish_setting_aside(other, system)
        for stem in sorted(_stems(other, system)):
            records = os.path.join(other, stem)
            if device.is_subject(records) or (
                device.has_name(stem) and _is_unreadable(records, system)
            ):
                if stem in divided:
                    raise DiskRefused(_several(path, other, divided[stem]))
                return records
    return os.path.join(directory, own)


def _several(path: str, directory: str, stems: list[str]) -> str:
    names = ", ".join(_shown(os.path.join(directory, stem)) for stem in stems)
    return f"{path}: has records in {directory} by several names: {names}"


def _finish_setting_aside(directory: str, system: SystemCalls) -> dict[str, list[str]]:
    """I{Slow}, if there is anything to finish. Set aside what is certainly about the same device as
    other records of its name that were set aside before.

    @return: the names of which records could not be set aside, each with the names of all records
        of its device.
    """
    divided: dict[str, list[str]] = {}
    stems = _stems(directory, system)
    for aside in sorted(stems):
        stem, colon, _ = aside.partition(_ASIDE)
        if not colon or stem not in stems:
            continue
        try:
            _move_all_of_its_device(os.path.join(directory, aside), stem, system)
        except OSError:
            divided.setdefault(stem, [stem]).append(aside)
    return divided


def _move_all_of_its_device(aside: str, stem: str, system: SystemCalls) -> None:
    """Have those records called C{stem} go to C{aside} that are of the device of those there.

    Of two of a kind the one that was not set aside yet is the later one.

    @raise OSError: one may not be renamed.
    """
    directory = os.path.dirname(aside)
    there = list(_sightings(aside, system))
    found = []
    for name in sorted(_names(directory, system)):
        path = os.path.join(directory, name)
        seen = _sighting(path, system) if _stem(name) == stem else None
        if seen is not None and any(same_disk(*seen, *other) for other in there):
            found.append(path)
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # somebody else has finished it
            system.rename(path, f"{aside}.{path.rpartition('.')[2]}")
    if found:
        system.sync_directory(directory)


class _Device:
    """The device whose records are looked for."""

    def __init__(self, path: str, number: int | None, system: SystemCalls, sys: str) -> None:
        self._path = os.path.realpath(path)
        self._number = number
        self._identity = device_identity(number, system, sys) if number is not None else ""
        self._boot = boot_id()
        self._system = system

    def is_subject(self, records: str) -> bool | None:
        """Whether records are about it; None where what they have recorded does not decide it."""
        answers = {
            same_disk(identity, boot, self._identity, self._boot)
            for identity, boot in _sightings(records, self._system)
        }
        return True if True in answers else None if None in answers or not answers else False

    def has_name(self, stem: str) -> bool:
        """Whether the node after which records are named leads to it."""
        name = _unescape(stem)
        same = self._number is not None and _number(name) == self._number
        return same or os.path.realpath(name) == self._path


class RecordsInside(NamedTuple):
    """Records of a device that has data of a certain disk.

    @ivar path: what their paths begin with.
    @ivar device: the path of the device; or of the records, if they are set aside.
    @ivar identity: of the device, as recorded.
    @ivar size: bytes of the device, as recorded.
    @ivar whole: it has all of the disk.
    """

    path: str
    device: str
    identity: str
    size: int
    whole: bool


def records_inside(
    identity: str, state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> Iterator[RecordsInside]:
    """The records of loop devices over a file, or of a disk's partitions, attached now or not.

    @param identity: of the file or disk.
    @param state_directory: where they are looked for first; None for the default.
    """
    directory, boot_now = os.path.abspath(state_directory or default_state_directory()), boot_id()
    for place in (directory, *_others(directory, system)):
        _finish_setting_aside(place, system)
        found: dict[str, RecordsInside] = {}
        for name in sorted(_names(place, system)):
            stem = _stem(name)
            record = _parsed(os.path.join(place, name), system) if stem else {}
            device, boot, size = record.get("identity"), record.get("boot"), record.get("size")
            if not (isinstance(device, str) and isinstance(boot, str) and isinstance(size, int)):
                continue
            if is_inside(device, boot, identity, boot_now):
                path, whole = os.path.join(place, stem), is_whole(device)
                found[stem] = RecordsInside(path, _shown(path), device, size, whole)
        yield from found.values()


def _sightings(records: str, system: SystemCalls) -> Iterator[tuple[str, str]]:
    """The identities in the records whose paths begin so, with the boots in which they were
    seen; as far as they can be read."""
    directory, stem = os.path.split(records)
    for name in _names(directory, system):
        if _stem(name) == stem and (seen := _sighting(os.path.join(directory, name), system)):
            yield seen


def _sighting(path: str, system: SystemCalls) -> tuple[str, str] | None:
    """The identity in one record, with its boot; None where it has none, or cannot be read."""
    record = _parsed(path, system)
    identity, boot = record.get("identity"), record.get("boot", "")
    if identity and isinstance(identity, str) and isinstance(boot, str):
        return identity, boot
    return None


def _is_unreadable(records: str, system: SystemCalls) -> bool:
    """Whether there are records that we may not read, another user's; or that are no files."""
    directory, stem = os.path.split(records)
    paths = [os.path.join(directory, name) for name in _names(directory, system)]
    return any(
        _stem(os.path.basename(path)) == stem
        and (os.path.islink(path) or not os.path.isfile(path) or not system.access(path, os.R_OK))
        for path in paths
    )


def _parsed(path: str, system: SystemCalls) -> dict[str, Any]:
    """The fields of a record; none if it cannot be read."""
    try:
        # Whoever it belongs to: it is only found here, and whether it counts is for others to say.
        descriptor = open_regular(path, system)
        try:
            parsed = json.loads(system.pread(descriptor, _LONGEST, 0))
        finally:
            system.close(descriptor)
    except (OSError, ValueError, RecursionError, Untrusted):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _names(directory: str, system: SystemCalls) -> list[str]:
    """What is in a directory; nothing where it does not exist, or may not be listed.

    @raise OSError: the medium has failed: what is there is not known.
    """
    try:
        return system.listdir(directory)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    except OSError as error:
        raise OSError(error.errno, f"{directory}: {describe_error(error)}") from None


@contextlib.contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Where the records of the disk at C{path} are cannot be found out if the medium fails.

    @raise DiskRefused: it has failed.
    """
    try:
        yield
    except OSError as error:
        raise DiskRefused(f"{path}: {describe_error(error)}") from None


def _stem(name: str) -> str:
    """What the name of a record has before its kind; "" if it is no record's."""
    stem, _, kind = name.rpartition(".")
    return stem if kind.isupper() else ""


def _stems(directory: str, system: SystemCalls) -> set[str]:
    return {stem for name in _names(directory, system) if (stem := _stem(name))}


def _number(path: str) -> int | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


# State directories beside the usual one.


def note_state_directory(directory: str) -> None:
    """Note, in the usual state directory, that another one is used; only as far as possible."""
    usual = default_state_directory()
    if os.path.realpath(directory) == os.path.realpath(usual):
        return
    notes = os.path.join(usual, _ELSEWHERE)
    with contextlib.suppress(OSError):
        os.makedirs(notes, 0o755, exist_ok=True)
        for name in os.listdir(notes):
            note = os.path.join(notes, name)
            if os.path.islink(note) and not os.path.exists(note):
                os.unlink(note)
        name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
        with contextlib.suppress(FileExistsError):
            os.symlink(directory, os.path.join(notes, name))
            SYSTEM.sync_directory(notes)


def _others(directory: str, system: SystemCalls) -> Iterable[str]:
    """The state directories of this host that are known, but for C{directory}."""
    usual = dict.fromkeys((default_state_directory(), ROOTS_DIRECTORY))
    notes = (os.path.join(place, _ELSEWHERE) for place in usual)
    links = [
        *(
            os.path.join(place, name)
            for place in notes
            if _is_of_ours(place)
            for name in sorted(_names(place, system))
        ),
        *(
            os.path.join(ROOTS_DIRECTORY, name)
            for name in sorted(_names(ROOTS_DIRECTORY, system))
            if name != _ELSEWHERE and not _stem(name)
        ),
    ]
    # Many may have been removed meanwhile; to ask for them is quicker than to resolve their names.
    noted = (os.path.realpath(link) for link in links if _names(link, system))
    own = os.path.realpath(directory)
    return [other for other in dict.fromkeys((*usual, *noted)) if other not in (directory, own)]


def _is_of_ours(directory: str) -> bool:
    """Whether that is a directory of root's, or of this user."""
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in (0, os.geteuid())


def decides_by_owner(records: str, state_directory: str | None) -> bool:
    """Whether records of a device count that belong to the owner of their directory.

    @param records: what their paths begin with.
    @param state_directory: the one that was chosen for this command; None for none.
    """
    directory = os.path.realpath(os.path.dirname(records))
    if state_directory is not None and directory == os.path.realpath(state_directory):
        return True
    services = os.path.join(_OF_SERVICES, os.path.basename(ROOTS_DIRECTORY))
    return any(
        os.path.commonpath((directory, place)) == place
        for place in (os.path.realpath(ROOTS_DIRECTORY), services)
    )


def _escape(path: str) -> str:
    """A path as a file name: C{/dev/vg0/web} is C{dev-vg0-web}."""
    return (
        urllib.parse.quote(os.fsencode(path.strip("/")), safe="/")
        .replace("-", "%2D")
        .replace("/", "-")
    )


def _shown(records: str) -> str:
    """The path of the disk that records are of, by their name; one that leads to them."""
    stem = os.path.basename(records)
    return records if _ASIDE in stem else _unescape(stem)


def _unescape(name: str) -> str:
    """The path after which records are named, which may be set aside."""
    name = name.partition(_ASIDE)[0]
    return "/" + os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(name.replace("-", "/"))))


def is_device(path: str) -> bool:
    """Whether C{path} is a block device.

    @raise DiskRefused: C{path} cannot be examined.
    """
    status = _status(path)
    return status is not None and stat.S_ISBLK(status.st_mode)


def _status(path: str) -> os.stat_result | None:
    """The status of what is at C{path}; None where there is nothing.

    @raise DiskRefused: that cannot be found out.
    """
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DiskRefused(f"{path}: {error.strerror}") from None
