"""The records of what a disk stands on, or has parts of: they are about its data too.

Owns where those records are looked for; what they say of the disk is `verdict`'s. A loop device is
judged with its file, a partition with its disk, and the other way round.

Rule: only what has a record or a mark is a reason for anything.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from ...storage import (
    DiskRefused,
    Layer,
    Relation,
    decides_by_owner,
    device_identity,
    device_record_path,
    device_size,
    file_identity,
    layers_of,
    records_inside,
)
from ...syscalls import SystemCalls
from .files import Records
from .mark import Mark, read_mark


class LayerState(NamedTuple):
    """What was found of a layer.

    @ivar relation: what it is to the disk.
    @ivar path: its path.
    @ivar records: its records.
    @ivar size: bytes; None where there is no such file any more.
    @ivar identity: of the file or device.
    @ivar mark: on the file.
    """

    relation: Relation
    path: str
    records: Records
    size: int | None = None
    identity: str = ""
    mark: Mark | None = None


def layers_at(
    path: str, identity: str, state_directory: str | None, system: SystemCalls
) -> Iterator[LayerState]:
    """What the disk at C{path} has data in common with.

    @param identity: of the disk.
    @param state_directory: where the records of devices are; None for the default.
    @raise OSError: the medium has failed: what is there is not known.
    """
    seen = set()
    for layer in layers_of(path):
        if layer.number is not None:
            found = _device(layer, layer.number, state_directory, system)
            seen.add(found.records.path)
            yield found
        else:
            yield _file(layer, system)
    for inside in records_inside(identity, state_directory, system):
        if inside.path not in seen:
            relation = Relation.ABOVE if inside.whole else Relation.PART
            records = _of_device(inside.path, inside.device, state_directory, system)
            # The device may be detached, so that nothing is there to be compared with its record.
            yield LayerState(relation, inside.device, records, inside.size, inside.identity)


def _device(
    layer: Layer, number: int, state_directory: str | None, system: SystemCalls
) -> LayerState:
    try:
        found = device_record_path(layer.path, number, state_directory, system)
    except DiskRefused:  # it has records by several names
        try:
            found = device_record_path(layer.path, None, state_directory, system)
        except DiskRefused as error:
            raise OSError(errno.EIO, str(error)) from None
    return LayerState(
        layer.relation,
        layer.path,
        _of_device(found, layer.path, state_directory, system),
        device_size(number),
        device_identity(number, system),
    )


def _of_device(path: str, device: str, state_directory: str | None, system: SystemCalls) -> Records:
    by_directory = decides_by_owner(path, state_directory)
    return Records(path, system, device, by_directory=by_directory)


def _file(layer: Layer, system: SystemCalls) -> LayerState:
    gone = LayerState(layer.relation, layer.path, Records(layer.path, system))
    if layer.deleted:
        return gone
    try:
        descriptor = system.open(layer.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EIO:
            raise
        return gone
    try:
        return LayerState(
            layer.relation,
            layer.path,
            Records(os.path.realpath(layer.path), system),
            system.fstat(descriptor).st_size,
            file_identity(descriptor, system),
            read_mark(descriptor),
        )
    finally:
        system.close(descriptor)
