"""The time that a step of a check may take."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, TimeoutError

from ...client import ClientFailed

T = TypeVar("T")


async def within(seconds: float, reactor: Any, doing: Coroutine[Any, Any, T], what: str) -> T:
    """What C{doing} comes to, if that takes at most C{seconds}.

    @param what: what it is to be, for the error.
    @raise ClientFailed: it takes longer; it is cancelled then.
    """
    working = Deferred.fromCoroutine(doing)
    working.addTimeout(seconds, reactor)
    try:
        return await working
    except TimeoutError:
        raise ClientFailed(f"no {what} within {seconds:g} s") from None
