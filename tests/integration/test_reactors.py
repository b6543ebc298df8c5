"""The same end-to-end tests on every reactor that an embedder may have (`tests.support.reactors`).

`python -m tests.support.reactors` prints the table of what uses the fast path where.
"""

from __future__ import annotations

import pytest
from tests.support.reactors import FAST, INSTALL, run, table

CLASSES = {
    "epoll": "twisted.internet.epollreactor.EPollReactor",
    "poll": "twisted.internet.pollreactor.PollReactor",
    "select": "twisted.internet.selectreactor.SelectReactor",
    "asyncio": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
    "uvloop": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
    "one thread": "twisted.internet.epollreactor.EPollReactor",
}
LOOPS = {"asyncio": "asyncio.", "uvloop": "uvloop."}


@pytest.mark.parametrize("kind", INSTALL)
def test_everything_works_on_every_reactor_and_uses_the_fast_path(kind: str) -> None:
    report = run(kind)
    print(table({kind: report}))
    assert report.reactor == CLASSES[kind]
    assert report.loop.startswith(LOOPS.get(kind, "")), report.loop
    assert report.failures == {}
    assert report.left == []
    assert len(report.calls) == 10
    for name, calls in report.calls.items():
        used = {call for call in FAST if calls.get(call)}
        assert used == (set() if name.startswith("TLS") else set(FAST)), name
