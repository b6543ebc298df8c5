"""Refuses a source that is an image of another format than raw: its bytes are not the disk's."""

from __future__ import annotations

import shlex
from typing import Final

from ...errors import Refused
from ...interfaces import IDisk
from ...storage import image_format
from ..disk import failing_locally

_FORMAT_PROBE: Final = 4096
"""Bytes at the start of a disk that tell the format of an image."""


def refuse_image(disk: IDisk, path: str) -> None:
    """I{Slow} without a descriptor. Refuse a disk that looks like an image.

    @param path: where it is.
    @raise Refused: it does.
    @raise blockmig.errors.LocalFailure: it cannot be read.
    """
    with failing_locally(disk):
        image = image_format(disk.read(0, min(disk.size, _FORMAT_PROBE)))
    if image:
        raise Refused(
            f"{path}: looks like a {image} image, and only raw disks are sent: convert it "
            f"(qemu-img convert -O raw {shlex.quote(path)} NEW), or give raw_anyway=True to send "
            "its bytes as they are"
        )
