"""`certificates`: makes a private CA, and certificates for hosts, where there are none."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..errors import ExitStatus, MigrationError, Refused
from . import common, usage
from .usage import Group, Parameter
from .values import parse_count

if TYPE_CHECKING:
    from .authority import Host

_LONGEST = 36500
_PLACE = "/etc/pki/blockmig"


def parse_days(text: str) -> int:
    """A number of days from 1 to a hundred years.

    @raise ValueError: it is not.
    """
    days = parse_count(text)
    if not 1 <= days <= _LONGEST:
        raise ValueError(f"{text!r} is not a number of days from 1 to {_LONGEST}")
    return days


class Options(usage.Options):
    """
    @ivar hosts: as they were given.
    """

    synopsis = "blockmig certificates DIR HOST... [options]"
    longdesc = (
        "Make certificates for TLS, for hosts that have none: a private CA in DIR (ca-cert.pem, "
        "ca-key.pem), if there is none yet, and for each HOST a folder DIR/HOST with the files "
        "that blockmig, QEMU, nbdkit and libnbd want: ca-cert.pem, server-cert.pem, "
        "server-key.pem, client-cert.pem and client-key.pem. Copy each folder to its host, and "
        "keep DIR to yourself: who has ca-key.pem can pretend to be anybody.\n\n"
        "HOST is the name or the IP address that clients use; several, separated by commas, are "
        "names of one host, whose folder has the first. Run it again for further hosts: they get "
        "certificates of the same CA. Nothing is overwritten."
    )
    examples = (
        (
            "blockmig certificates pki web1.example.com web2.example.com",
            "Make a CA in pki, and the folders pki/web1.example.com and pki/web2.example.com.",
        ),
        (
            "blockmig certificates pki db1,db1.example.com,192.0.2.7 --days 90",
            "Add a host that has two names and an address, for 90 days.",
        ),
    )
    statuses = (0, 1, 3)
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "days",
            "Let the hosts' certificates be valid for DAYS days.",
            parse_days,
            365,
            metavar="DAYS",
            group=Group.WHEN,
        ),
        Parameter(
            "ca-days",
            "Let a new CA be valid for DAYS days; no host's certificate is valid for longer than "
            "its CA's.",
            parse_days,
            3650,
            metavar="DAYS",
            group=Group.WHEN,
        ),
    )
    hosts: Sequence[str] = ()

    def parseArgs(self, *arguments: str) -> None:
        if len(arguments) < 2 or not arguments[0]:
            raise usage.UsageError("expected arguments: DIR HOST...")
        self["directory"], *self.hosts = arguments
        self["directory"] = common.check_path(self["directory"])


def run(options: Options) -> int:
    """Make what is missing, say how it is used, and return the exit status."""
    try:
        _make(options)
    except MigrationError as error:
        usage.complain(error)
        return error.status
    return ExitStatus.DONE


def _make(options: Options) -> None:
    from .tls import check_extra  # noqa: PLC0415

    check_extra()
    from .authority import CA_KEY, already_there, authority_in, parse_host  # noqa: PLC0415

    directory = options["directory"]
    try:
        hosts = [parse_host(text) for text in options.hosts]
    except ValueError as error:
        raise Refused(str(error)) from None
    if len({host.name for host in hosts}) < len(hosts):
        raise Refused("a host is given twice")
    for host in hosts:
        path = os.path.join(directory, host.name)
        if os.path.lexists(path):
            raise already_there(path)
    with authority_in(directory, options["ca-days"]) as authority:
        if authority.is_new:
            usage.show(
                f"{directory}: a new CA, valid until {authority.certificate.not_valid_after_utc:%F}"
                f"; keep {CA_KEY} to yourself"
            )
        for host in hosts:
            end = authority.add(host, options["days"])
            usage.show(f"{os.path.join(directory, host.name)}: made, valid until {end:%F}")
    usage.show(_advice(directory, hosts))


def _advice(directory: str, hosts: Sequence[Host]) -> str:
    """How to copy them, and how to use them."""
    first = hosts[0].name
    address = f"[{first}]" if ":" in first else first
    folder = shlex.quote(os.path.join(directory, first))
    return (
        f"Copy:    scp -pr {folder} {address}:{_PLACE}\n"
        f"There:   blockmig receive FILE --listen 0.0.0.0:10809 --tls-certificates {_PLACE} "
        "--tls-verify-peer\n"
        f"Sender:  blockmig send DISK nbds://{address}/ --tls-certificates {_PLACE}"
    )
