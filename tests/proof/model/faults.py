"""The kinds of faults, and the sets of them with which the model is explored."""

from __future__ import annotations

BREAKS = frozenset({"crash", "power", "cut", "stop", "stranger"})
"""The kinds of faults that touch no file; `late stranger` is one that comes only once the source
is retired."""

OTHERS = frozenset({"swap source", "write source", "swap target", "cut target"})
"""Those of somebody else who deletes, exchanges or changes what stands there."""

KINDS = BREAKS | OTHERS
"""All that an ordinary exploration has; those that lift an assumption are L{LIFTS}."""

LIFTS = frozenset(
    {
        "forget",
        "finished stranger",
        "rerun",
        "earlier finisher",
        "between look and act",
        "moved late",
        "deleted late",
        "destroyed copy",
    }
)

QUIET = frozenset({"crash", "power", "cut"})
AT_SOURCE = frozenset({"swap source", "write source", "crash", "cut"})
AT_TARGET = frozenset({"swap target", "cut target", "crash", "cut"})
AT_BOTH = frozenset({"swap source", "swap target", "crash", "stop"})
