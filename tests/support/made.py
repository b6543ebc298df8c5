"""Objects made from keywords, of which the constructors take some together as one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from blockmig import claims
from blockmig.migration.policy import Overrides, Patience
from blockmig.runtime import Runtime
from blockmig.syscalls import SYSTEM
from blockmig.testing import synchronous

T = TypeVar("T")

_GROUPS = {
    "overrides": (Overrides, ("overwrite", "in_use_anyway", "no_space_check")),
    "patience": (Patience, ("retry", "give_up_after", "reply_timeout", "retry_policy")),
}


def made(kind: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """Make one of C{kind}.

    C{reactor}, C{in_thread} and C{system} become its runtime, and likewise what is of other groups.
    Of a group that nothing is said of nothing comes of it; a runtime without a reactor is the real
    one, and one with a reactor has threads that are done at once.

    It is made as if in a process of its own: what was made before and has not ended has died with
    its process, and uses no disk any more.
    """
    claims.forget_all()
    takes = inspect.signature(kind).parameters
    for name, (group, names) in _GROUPS.items():
        found = [key for key in names if key in keywords and key not in takes]
        if found and name in takes:
            keywords[name] = group(**{key: keywords.pop(key) for key in found})
    reactor = keywords.pop("reactor", None)
    threads = keywords.pop("in_thread", None)
    system = keywords.pop("system", SYSTEM)
    if reactor is None:
        real = Runtime.of()
        runtime = Runtime(real.reactor, threads or real.threads, system)
    else:
        runtime = Runtime(reactor, threads or synchronous, system)
    return kind(*arguments, runtime=runtime, **keywords)
