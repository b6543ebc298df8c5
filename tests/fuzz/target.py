"""What a target is, and what all of them need."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from twisted.logger import LogLevel, globalLogPublisher


class Broken(AssertionError):
    """The product has done something that it must not do."""


@dataclass(frozen=True)
class Target:
    """Something that inputs are fed to.

    @ivar name: what it is called, on the command line too.
    @ivar run: takes one input; raises if the product is wrong.
    @ivar longest: bytes of the longest input that is worth trying.
    @ivar seeds: the names of the corpora from which to begin.
    """

    name: str
    run: Callable[[bytes], None]
    longest: int
    seeds: tuple[str, ...]


TARGETS: Final[dict[str, Target]] = {}
"""All of them, by name; filled by L{tests.fuzz.targets}."""


def target(
    name: str, *, longest: int, seeds: str | tuple[str, ...] = ()
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Make a target of a function.

    @param seeds: the corpora from which to begin; by default the one that is named as the target.
    """

    def register(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
        corpora = (seeds,) if isinstance(seeds, str) else seeds or (name,)
        TARGETS[name] = Target(name, function, longest, corpora)
        return function

    return register


def need(fact: object, why: str) -> None:
    """Say that the product is wrong unless C{fact}."""
    if not fact:
        raise Broken(why)


def pieces(data: bytes) -> Iterator[bytes]:
    """C{data} in pieces as a network might deliver it: any, and the same each time."""
    sizes = random.Random(zlib.crc32(data))
    position = 0
    while position < len(data):
        size = sizes.choice((1, 1, 2, 3, 7, 28, 29, 150, 4096))
        yield data[position : position + size]
        position += size


@contextlib.contextmanager
def nothing_logged_as_bug() -> Iterator[None]:
    """Raise what the block logs with a traceback: an exception that nobody expected."""
    failures = []

    def observe(event: dict) -> None:
        level = event.get("log_level")
        if event.get("log_failure") is not None or (level and level >= LogLevel.critical):
            failures.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observe)
    if failures:
        failure = failures[0].get("log_failure")
        if failure is not None:
            raise Broken(f"it was logged as a bug: {failures[0].get('log_format')}") from (
                failure.value
            )
        raise Broken(f"it was logged as a bug: {failures[0]}")
