"""Disks, and what is known of them: extents, contents, coverage, locks, location and users.

Owns the descriptors of disks, and nothing above them. Its calls block; the layers above run the
slow ones in threads. Imports no reactor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .contents import describe_contents, find_data, image_format, sample_ranges
    from .coverage import Coverage
    from .deletable import why_names_stay
    from .departed import DepartedDisk
    from .device import BlockDisk
    from .dirty import GRANULARITY, DirtyMap, TouchedMap
    from .disk import PROBE_SIZE, DescriptorDisk, has_descriptor, held_descriptor, is_untouched
    from .errors import DiskChanged, DiskInUse, DiskRefused, NotDurable
    from .file import FileDisk
    from .guarded import guard, path_of
    from .identities import (
        boot_id,
        device_identity,
        file_identity,
        is_device_identity,
        is_provable,
        is_still_attached,
        same_disk,
    )
    from .layers import Layer, Relation, device_size, layers_of
    from .lock import is_locked
    from .mounts import device_in_memory, filesystem_of, is_in_memory, is_remote
    from .open import open_disk
    from .record_paths import (
        ROOTS_DIRECTORY,
        aside_path,
        decides_by_owner,
        default_state_directory,
        device_record_path,
        is_aside,
        paths_aside,
        record_path,
        records_inside,
        state_path,
    )
    from .room import Room
    from .scan import LONGEST_ZEROES, Scan
    from .segment import Segment, split_data
    from .survey import Survey
    from .trusted import Untrusted, open_trusted
    from .users import User, is_open_elsewhere, users_of
    from .watched import DiskVersion, describe_version, version_at
else:
    __getattr__ = lazily(
        __name__,
        {
            "BlockDisk": "device",
            "Coverage": "coverage",
            "DepartedDisk": "departed",
            "DescriptorDisk": "disk",
            "DirtyMap": "dirty",
            "DiskChanged": "errors",
            "DiskInUse": "errors",
            "DiskRefused": "errors",
            "DiskVersion": "watched",
            "FileDisk": "file",
            "GRANULARITY": "dirty",
            "LONGEST_ZEROES": "scan",
            "Layer": "layers",
            "NotDurable": "errors",
            "PROBE_SIZE": "disk",
            "ROOTS_DIRECTORY": "record_paths",
            "Relation": "layers",
            "Room": "room",
            "Scan": "scan",
            "Segment": "segment",
            "Survey": "survey",
            "TouchedMap": "dirty",
            "Untrusted": "trusted",
            "User": "users",
            "aside_path": "record_paths",
            "boot_id": "identities",
            "decides_by_owner": "record_paths",
            "default_state_directory": "record_paths",
            "describe_contents": "contents",
            "describe_version": "watched",
            "device_identity": "identities",
            "device_in_memory": "mounts",
            "device_record_path": "record_paths",
            "device_size": "layers",
            "file_identity": "identities",
            "filesystem_of": "mounts",
            "find_data": "contents",
            "guard": "guarded",
            "has_descriptor": "disk",
            "held_descriptor": "disk",
            "image_format": "contents",
            "is_aside": "record_paths",
            "is_device_identity": "identities",
            "is_in_memory": "mounts",
            "is_locked": "lock",
            "is_open_elsewhere": "users",
            "is_provable": "identities",
            "is_remote": "mounts",
            "is_still_attached": "identities",
            "is_untouched": "disk",
            "layers_of": "layers",
            "open_disk": "open",
            "open_trusted": "trusted",
            "path_of": "guarded",
            "paths_aside": "record_paths",
            "record_path": "record_paths",
            "records_inside": "record_paths",
            "same_disk": "identities",
            "sample_ranges": "contents",
            "split_data": "segment",
            "state_path": "record_paths",
            "users_of": "users",
            "version_at": "watched",
            "why_names_stay": "deletable",
        },
    )

__all__ = [
    "GRANULARITY",
    "LONGEST_ZEROES",
    "PROBE_SIZE",
    "ROOTS_DIRECTORY",
    "BlockDisk",
    "Coverage",
    "DepartedDisk",
    "DescriptorDisk",
    "DirtyMap",
    "DiskChanged",
    "DiskInUse",
    "DiskRefused",
    "DiskVersion",
    "FileDisk",
    "Layer",
    "NotDurable",
    "Relation",
    "Room",
    "Scan",
    "Segment",
    "Survey",
    "TouchedMap",
    "Untrusted",
    "User",
    "aside_path",
    "boot_id",
    "decides_by_owner",
    "default_state_directory",
    "describe_contents",
    "describe_version",
    "device_identity",
    "device_in_memory",
    "device_record_path",
    "device_size",
    "file_identity",
    "filesystem_of",
    "find_data",
    "guard",
    "has_descriptor",
    "held_descriptor",
    "image_format",
    "is_aside",
    "is_device_identity",
    "is_in_memory",
    "is_locked",
    "is_open_elsewhere",
    "is_provable",
    "is_remote",
    "is_still_attached",
    "is_untouched",
    "layers_of",
    "open_disk",
    "open_trusted",
    "path_of",
    "paths_aside",
    "record_path",
    "records_inside",
    "same_disk",
    "sample_ranges",
    "split_data",
    "state_path",
    "users_of",
    "version_at",
    "why_names_stay",
]
