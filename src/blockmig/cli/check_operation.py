"""What `check` and `send --dry-run` do: look whether the migration could begin, and say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred

from ..errors import ExitStatus, GaveUp, LocalFailure
from ..migration.check.check import check_migration
from ..migration.check.report import CheckItem, CheckReport
from ..migration.identity import Identity
from ..migration.policy import Overrides
from ..runtime import Runtime
from ..transport import client_endpoint
from ..units import printable
from .logs import warn_of_again
from .send import SendingOptions
from .tls import destination_at
from .usage import OutputFailed, flush_output, show
from .wording import in_options

_LONGEST_TIMEOUT: Final = 10.0
"""Seconds. Who checks sits there, and waits."""


def _show_at_once(line: str) -> None:
    show(line)
    flush_output()


class CheckOperation:
    """Looks at both ends, and prints a line for each thing, or one JSON object for all.

    @param make_endpoint: makes the endpoint to connect to, from the reactor and its URI.
    @param show: prints a text.
    """

    hung_up: Final = None

    def __init__(
        self,
        options: SendingOptions,
        runtime: Runtime,
        make_endpoint: Callable[[Any, Any], Any] = client_endpoint,
        show: Callable[[str], object] = _show_at_once,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._make_endpoint = make_endpoint
        self._show = show
        self._checking: Deferred[CheckReport] | None = None
        self._stop_reason = ""

    async def run(self) -> ExitStatus:
        options, as_json = self._options, bool(self._options["json"])
        warn_of_again(options)  # of `send`
        destination = destination_at(options.uri, self._make_endpoint, self._runtime.reactor)
        self._checking = check_migration(
            options["file"],
            destination,
            state_directory=options["state-dir"],
            unlink=bool(options["unlink"]),
            overrides=Overrides(
                overwrite=bool(options["overwrite"]),
                in_use_anyway=bool(options["in-use-anyway"]),
                plain=bool(options["plain"]),
            ),
            raw_anyway=bool(options["raw-anyway"]),
            identity=Identity(options["id"] or "", options.secret),
            max_rate=options["max-rate"],
            timeout=min(options["timeout"], _LONGEST_TIMEOUT),
            tell=(lambda item: None) if as_json else self._tell,
            runtime=self._runtime,
        )
        try:
            report = await self._checking
        except CancelledError:
            raise GaveUp(f"{self._stop_reason}; the check has changed nothing") from None
        if as_json:
            self._print(json.dumps(self._as_json(report, destination.uri)))
        else:
            self._print(printable(report.conclusion))
        return ExitStatus.DONE if report.can_begin else ExitStatus.REFUSED

    def _as_json(self, report: CheckReport, destination: str) -> dict[str, Any]:
        found = report.as_json()
        for item in found["checks"]:
            item["message"] = in_options(item["message"])
        return {"disk": self._options["file"], "destination": destination, **found}

    def _tell(self, item: CheckItem) -> None:
        self._print(printable(f"{item.result:<8} {item.message}"))

    def _print(self, line: str) -> None:
        """Print a line at once: the next one may take seconds.

        @raise LocalFailure: it cannot be written.
        """
        try:
            self._show(line)
        except OutputFailed as error:
            raise LocalFailure(str(error)) from None

    def stop(self, why: str) -> None:
        self._stop_reason = why
        if self._checking is not None:
            self._checking.cancel()
