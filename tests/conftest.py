"""Fixtures of the tests with real processes; `tests/unit` is run by trial and uses none of them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.namespaces import leave_the_network, leave_the_state_directory
from tests.support.processes import FULL, Processes

# A shell that starts the tests in the background has them ignore SIGINT, and nohup SIGHUP, and so
# every process that they start; what is handled here instead is the default there.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

if "PYTEST_XDIST_WORKER" in os.environ:
    leave_the_network()
leave_the_state_directory()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two for each processor: a half of the time tests wait."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow, unless all is wanted."""
    slow = [] if FULL else [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory of the test's own on a real file system, gone after it whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix="blockmig-test-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def processes(room: Path) -> Iterator[Processes]:
    """Starts processes, and kills those that are left at the end."""
    made = Processes(room)
    try:
        yield made
    finally:
        made.finish()
