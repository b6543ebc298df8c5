"""`status`: asks a running command for its status, and shows it; needs no reactor.

The rule: the two need not be of one version. A field that is missing is left out, or shown as C{?};
one that is not known here is not shown, except in C{migration}, whose fields are shown by their
names, and except with `--json`, which passes on everything as it came.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final

from ..errors import ExitStatus
from ..units import format_bytes, format_duration, printable
from . import common, usage
from .usage import Flag, Parameter

_MOST_NETS: Final = 8
"""That are shown."""

_HEADINGS: Final = ("client", "connected", "reads", "read", "writes", "written", "other")


class Options(usage.Options):
    synopsis = "blockmig status --control PATH [--json]"
    longdesc = (
        "Show what a running `blockmig serve` or `blockmig receive` is doing. The exit status is "
        "1 if nothing answers on the control socket."
    )
    examples = (
        (
            "blockmig status --control /run/web.control",
            "How far the mirror is, and who is connected.",
        ),
        (
            "blockmig status --control /run/web.control --json",
            "The same for scripts.",
        ),
    )
    statuses = (0, 1)
    optFlags: ClassVar[tuple[Flag, ...]] = (common.JSON,)
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.CONTROL_SOCKET,)

    def postOptions(self) -> None:
        common.check_control(self)


def run(options: Options) -> int:
    """Print the status, and return 0, or 1 if there is no answer."""
    from ..control import ControlError, ask  # noqa: PLC0415

    try:
        status = ask(options["control"], "GET", "/status")
        if not isinstance(status, dict):
            raise ControlError(f"the answer on {options['control']} is not a status")
    except ControlError as error:
        usage.complain(error)
        return ExitStatus.REFUSED
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a file name need not be UTF-8
        reconfigure(errors="backslashreplace")
    usage.show(json.dumps(status) if options["json"] else as_text(status))
    return ExitStatus.DONE


_STATES: Final = {"broken": "cancelled"}
"""States of a mirror that people call otherwise; scripts know them by these names."""


def as_text(status: dict[str, Any]) -> str:
    """A status as lines for people."""
    size = _number(status, "size")
    disk = f"{_text(status, 'role')}: {_text(status, 'state')}, {_text(status, 'disk')}"
    if size is not None:
        disk += f", {format_bytes(size)}" + (f" ({size:.0f} bytes)" if size >= 1024 else "")
    elif status.get("role") == "receive":
        disk += ", size not known yet"
    if status.get("read_only"):
        disk += ", read-only"
    if status.get("export"):
        disk += f", export {_text(status, 'export')!r}"
    process = f"pid {_text(status, 'pid')}, up {format_duration(_number(status, 'uptime') or 0)}"
    lines = [disk, f"{process}, blockmig {_text(status, 'version')}"]
    lines += [f"listening on {printable(uri)}" for uri in _list(status, "listening")]
    if status.get("tls") == "on":
        lines.append("TLS: on, for clients that ask for it")
    lines += _allowed(status)
    totals = status.get("totals")
    if isinstance(totals, dict):
        lines.append(
            f"total: {_text(totals, 'connections')} connections, "
            f"{_text(totals, 'reads')} reads ({_bytes(totals, 'bytes_read')}), "
            f"{_text(totals, 'writes')} writes ({_bytes(totals, 'bytes_written')}), "
            f"{_text(totals, 'other')} other requests"
        )
    migration = status.get("migration")
    if isinstance(migration, dict):
        lines += _migration(migration, size)
    mirror = status.get("mirror")
    if isinstance(mirror, dict):
        lines += _mirror(mirror, size)
    relay = status.get("relay")
    if isinstance(relay, dict):
        lines += _relay(relay)
    clients = [client for client in _list(status, "clients") if isinstance(client, dict)]
    lines += ["", *_table(clients)] if clients else ["no clients"]
    return "\n".join(lines)


def _allowed(status: dict[str, Any]) -> list[str]:
    """The lines of who may connect; none where everybody may."""
    lines = []
    if isinstance(status.get("allow"), list):
        nets = [printable(net) for net in _list(status, "allow")]
        more = int(_number(status, "allow_count") or 0) - min(len(nets), _MOST_NETS)
        line = ", ".join(nets[:_MOST_NETS]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"allowed: {line or 'nobody'}")
    if isinstance(status.get("allow_uid"), list):
        users = ", ".join(printable(user) for user in _list(status, "allow_uid"))
        lines.append(f"allowed at UNIX sockets: users {users or 'none'}")
    if lines and _number(status, "refused") is not None:
        lines[-1] += f"; {_number(status, 'refused'):.0f} connections refused"
    return lines


def _migration(migration: dict[str, Any], size: float | None) -> list[str]:
    """The line of the migration that a receiver takes part in; "" where nothing is known."""
    of_the_disk = "" if size is None else f" of {format_bytes(size)}"
    line = _joined(
        _phrase(migration, "attempts", "attempt {:.0f}"),
        _percent(migration, "covered", size),
        _phrase(migration, "covered", f"{{}}{of_the_disk} covered", format_bytes),
        _phrase(migration, "rate", "at {}/s", format_bytes),
        _phrase(migration, "expected_end", "expected to end in {}", format_duration),
        f"from {_text(migration, 'source')}" if migration.get("source") else "",
    )
    return [f"migration: {line}"] if line else []


def _mirror(mirror: dict[str, Any], size: float | None) -> list[str]:
    """The lines of the mirror; those without anything to show are left out."""
    state = _text(mirror, "state")
    heading = f"mirror: {_STATES.get(state, state)}, to {_text(mirror, 'destination')}"
    if (seconds := _number(mirror, "seconds")) is not None:
        heading += f", for {format_duration(seconds)}"
    numbers = [("attempts", "attempt"), ("pass", "pass")]
    heading += "".join(f", {word} {_text(mirror, key)}" for key, word in numbers if key in mirror)
    of_the_disk = "" if size is None else f" of {format_bytes(size)}"
    lines = [
        _joined(
            _phrase(mirror, "left", f"{{}}{of_the_disk} left", format_bytes),
            _phrase(mirror, "data_left", "{} of it data", format_bytes),
            _phrase(mirror, "rate", "sent at {}/s", format_bytes),
            _phrase(mirror, "expected_end", "expected to end in {}", format_duration),
        ),
        _joined(
            _phrase(mirror, "dirty", "{} dirty", format_bytes),
            _phrase(mirror, "dirty_rate", "writing {}/s", format_bytes),
            _phrase(mirror, "throttle", "throttled to {}/s", format_bytes),
            "too fast to be sent" if mirror.get("converging") is False else "",
        ),
        _joined(
            _phrase(mirror, "sent", "{} of data", format_bytes),
            _phrase(mirror, "zeroes", "{} of zeroes", format_bytes),
        ),
        _joined(
            _phrase(mirror, "holds", "{:.0f} so far"),
            _phrase(mirror, "pause", "the last for {}", _milliseconds),
            _phrase(mirror, "expected_pause", "the next for about {}", _milliseconds),
            _phrase(mirror, "max_pause", "at most {} allowed", _milliseconds),
            _phrase(mirror, "client_pause", "clients waited {} for the new server", _milliseconds),
        ),
        _joined(
            _phrase(mirror, "max_rate", "at most {}/s", format_bytes),
            *(f"{key}: {_text(mirror, key)}" for key in ("converge", "then") if key in mirror),
            "the source is deleted at the end" if mirror.get("unlink") is True else "",
        ),
        _joined(printable(mirror.get("last_error") or "")),
        _joined(printable(mirror.get("cause") or "")),
    ]
    labels = "progress", "clients", "this attempt", "holds", "options", "last error", "before that"
    rows = zip(labels, lines, strict=True)
    return [heading, *(f"  {label}: {line}" for label, line in rows if line)]


def _relay(relay: dict[str, Any]) -> list[str]:
    """The lines of what passes through to the server that has the disk now."""
    available = relay.get("available") is True
    heading = _joined(
        f"relay: to {_text(relay, 'to')}",
        "" if available else "which does not answer",
        _phrase(relay, "clients", "{:.0f} client(s)"),
        _phrase(relay, "waiting", "{:.0f} waiting") if relay.get("waiting") else "",
    )
    left = _phrase(relay, "linger_left", "ends in {} if nobody comes", format_duration)
    if relay.get("linger") == "forever":
        linger = "stays for ever"
    else:
        linger = left or _phrase(
            relay, "linger", "stays for {} after the last client", format_duration
        )
    lines = [
        _joined(
            _phrase(relay, "bytes_to_server", "{} to the server", format_bytes),
            _phrase(relay, "bytes_to_clients", "{} to clients", format_bytes),
        ),
        linger,
        "" if available else printable(relay.get("last_error") or ""),
    ]
    rows = zip(("passed on", "address", "last error"), lines, strict=True)
    return [heading, *(f"  {label}: {line}" for label, line in rows if line)]


def _phrase(
    fields: dict[str, Any],
    name: str,
    words: str,
    spell: Callable[[float], object] = float,
) -> str:
    """C{words} with the number of that name in them; "" if there is none."""
    value = _number(fields, name)
    return "" if value is None else words.format(spell(value))


def _percent(fields: dict[str, Any], name: str, size: float | None) -> str:
    """How much of the disk that is, never 100 % before all of it is done; "" if not known."""
    done = _number(fields, name)
    return f"{int(1000 * done / size) / 10:.1f}%" if done is not None and size else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else format_duration(seconds)


def _table(clients: list[dict[str, Any]]) -> list[str]:
    rows = [_HEADINGS] + [
        (
            _text(client, "address")
            + (f" ({_text(client, 'name')})" if client.get("name") else ""),
            format_duration(_number(client, "connected") or 0),
            _text(client, "reads"),
            _bytes(client, "bytes_read"),
            _text(client, "writes"),
            _bytes(client, "bytes_written"),
            _text(client, "other"),
        )
        for client in clients
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _text(fields: dict[str, Any], name: str) -> str:
    return printable(fields.get(name, "?"))


def _number(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    return value if isinstance(value, int | float) else None


def _bytes(fields: dict[str, Any], name: str) -> str:
    value = _number(fields, name)
    return "?" if value is None else format_bytes(value)


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    return value if isinstance(value, list) else []
