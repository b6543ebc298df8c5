"""What a block device stands on, and which parts it has: its data is theirs too (design, R10).

Owns the walk through sysfs. A loop device stands on a file, device mapper and md on other devices,
a partition on its disk. It opens nothing, and needs no nodes: a name in /dev is only what people
know a device by.

Rule: what is unknown is left out. A caller that finds nothing is where it was before.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from .mounts import backing_file, device_entry, read_line

_MOST: Final = 64
_DELETED: Final = " (deleted)"
_SECTOR: Final = 512


class Relation(StrEnum):
    """What a layer is to the disk, as it is put into words."""

    BELOW = "stands on"
    WHOLE = "is a part of"
    PART = "has the part"
    ABOVE = "is the file of"
    """A loop device that was over the disk's file."""


class Layer(NamedTuple):
    """A file or device that has data in common with a disk.

    @ivar relation: what it is to the disk.
    @ivar path: its path; one that it had, if C{deleted}.
    @ivar number: its number (C{st_rdev}), if it is a device.
    @ivar deleted: it is a file without a name.
    """

    relation: Relation
    path: str
    number: int | None = None
    deleted: bool = False


def layers_of(path: str, sys: str = "/sys") -> list[Layer]:
    """What the device at C{path} stands on, the nearest first, then its parts.

    @param sys: where sysfs is.
    @return: nothing for a file.
    """
    try:
        status = os.stat(path)
    except OSError:
        return []
    return layers_of_device(status.st_rdev, sys) if stat.S_ISBLK(status.st_mode) else []


def layers_of_device(number: int, sys: str = "/sys") -> list[Layer]:
    """As L{layers_of}, for the device with that number."""
    entry = _entry(number, sys)
    found = _below(entry, sys)
    for layer in found:  # it grows meanwhile
        if layer.number is not None and len(found) < _MOST:
            found += [more for more in _below(_entry(layer.number, sys), sys) if more not in found]
    return [*found, *_parts(entry)]


def device_size(number: int, sys: str = "/sys") -> int | None:
    """Bytes of the device with that number; None if unknown."""
    sectors = read_line(os.path.join(_entry(number, sys), "size"))
    return int(sectors) * _SECTOR if sectors.isdecimal() else None


def _entry(number: int, sys: str) -> str:
    return os.path.realpath(device_entry(number, sys))


def _below(entry: str, sys: str) -> list[Layer]:
    found = []
    if path := backing_file(entry):
        deleted = path.endswith(_DELETED) and not os.path.exists(path)
        path = path.removesuffix(_DELETED) if deleted else path
        found.append(Layer(Relation.BELOW, path, None if deleted else _number(path), deleted))
    if os.path.exists(os.path.join(entry, "partition")):
        found += _device(Relation.WHOLE, os.path.dirname(entry))
    for name in _names(os.path.join(entry, "slaves")):
        found += _device(Relation.BELOW, os.path.join(entry, "slaves", name))
    return found


def _parts(entry: str) -> Iterator[Layer]:
    for name in _names(entry):
        if os.path.exists(os.path.join(entry, name, "partition")):
            yield from _device(Relation.PART, os.path.join(entry, name))


def _device(relation: Relation, entry: str) -> list[Layer]:
    major, _, minor = read_line(os.path.join(entry, "dev")).partition(":")
    if not (major.isdecimal() and minor.isdecimal()):
        return []
    # The directory's name has "!" for a slash.
    name = os.path.basename(os.path.realpath(entry)).replace("!", "/")
    label = read_line(os.path.join(entry, "dm", "name"))
    path = f"/dev/mapper/{label}" if label else f"/dev/{name}"
    return [Layer(relation, path, os.makedev(int(major), int(minor)))]


def _number(path: str) -> int | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
