"""The unit tests, run by trial.

An exception that Python can only report and ignore (in a destructor, or in a coroutine that is
thrown away) fails the test in which it happens. How long Hypothesis takes to make an example does
not: that depends on what else the machine is doing. Root's state directory is an empty one.
"""

from __future__ import annotations

import sys

from hypothesis import HealthCheck, settings
from twisted.python import log
from twisted.python.failure import Failure

from tests.support.namespaces import leave_the_state_directory


def _fail(unraisable: sys.UnraisableHookArgs) -> None:
    sys.__unraisablehook__(unraisable)
    error = unraisable.exc_value or unraisable.exc_type()
    log.err(Failure(error), f"ignored in {unraisable.object!r}")


sys.unraisablehook = _fail
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")
leave_the_state_directory()
