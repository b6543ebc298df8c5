"""The cases: each makes one or more tables, and can be run by its name.

A case is a module with a function C{run(settings)}, which makes its tables one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Final

from ..results import Table
from ..settings import Settings

CASES: Final = {
    "tmpfs": "memory to memory, into pages that are there; processor time",
    "fresh": "memory to memory, into memory that was free",
    "disk": "disk to disk, durable at the end",
    "loop": "the same on ext4, xfs and btrfs, and on a device, each on a loop device",
    "sparse": "1 TiB and 16 TiB with little data",
    "files": "an image of a file system with 100,000 small files",
    "serving": "requests to a server: small and large, few and many at once",
    "grains": "a mirror's changes: many small ones beside one long one",
    "http": "what a web server notices of a migration in its process",
    "serving-http": "what a web server notices of a disk served in its process",
    "tls": "memory to memory over TLS",
    "mirror": "what clients notice of a mirror",
    "forecasts": "what a mirror forecasts, beside what happened",
    "memory": "how much memory a server takes with a hundred clients",
    "strangers": "a migration beside thousands of strangers",
}
"""By name: what it is about. This is also the order in which they are run, and shown."""


def case(name: str) -> Callable[[Settings], Iterator[Table]]:
    """What runs it."""
    run: Callable[[Settings], Iterator[Table]] = import_module(
        f"{__name__}.{name.replace('-', '_')}"
    ).run
    return run
