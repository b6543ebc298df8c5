"""The ways by which the data of a `move` gets to the receiver: what each of them has to do.

Owns what is common to them (`Way`), and the order in which they are tried. There are two: `tunnel`,
through the ssh connection that starts the receiver, and `direct_tls`, over TCP beside it.

Rules:

* the data is encrypted on either way, and both ends prove to each other that they belong to this
  move. There is no way without that;
* once a way has been found to lead to the receiver, this run of `move` stays with it. Another one
  is tried only before that, when nothing was sent, and only where the user left it to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from ..errors import MigrationError, Refused
from ..nbd import NBDURI

if TYPE_CHECKING:
    from ..runtime import Runtime
    from ..transport.tls import ClientTLS
    from .move import Options


class FarFailed(Exception):
    """There is no receiver now, which another try may mend; the message says why."""


class NoWay(Refused):
    """The data cannot go this way, and nothing was sent yet.

    @ivar why: without what to do about it, which the message has as well.
    """

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(f"{why}: {advice}" if advice else why)
        self.why = why


class Data(StrEnum):
    """Which way the user wants."""

    SSH = "ssh"
    TLS = "tls"
    AUTO = "auto"


class Way(Protocol):
    """One way to the receiver.

    @ivar tls: how the connections to it speak TLS; None for not at all.
    @ivar certificates: what a process of our own that connects needs for that, as PEM; empty for
        nothing.
    @ivar forwards: ssh has to lead to the receiver.
    """

    @property
    def tls(self) -> ClientTLS | None: ...

    @property
    def certificates(self) -> bytes: ...

    @property
    def forwards(self) -> bool: ...

    def ssh_options(self) -> list[str]:
        """Those of the next ssh; `script` is called right after this."""

    def script(self, command: str, arguments: Sequence[str]) -> str:
        """What the shell does at the other end: run the receiver.

        @param command: what blockmig is called there; words of that shell.
        @param arguments: of the receiver, all but those of this way.
        """

    def input(self, secret: bytes) -> bytes:
        """What the receiver's standard input has first.

        @raise MigrationError: there will be none.
        """

    def opened(self, uri: str) -> None:
        """The receiver has said that it listens there."""

    def judged(self, error: MigrationError) -> MigrationError:
        """What an error of the receiver means for this way: a L{NoWay} if it is about that."""

    async def reach(self) -> NBDURI:
        """Where to connect to, once the receiver listens.

        @raise FarFailed: nothing leads there now.
        @raise NoWay: nor will anything.
        """

    def close(self) -> None:
        """Remove what was made for it here."""

    def remove_left_behind(self) -> None:
        """Remove what an earlier process of this migration has left here."""


def ways(wanted: str) -> list[Data]:
    """Those that are tried, one after the other."""
    return [Data.TLS, Data.SSH] if wanted == Data.AUTO else [Data(wanted)]


def make_way(
    kind: Data, options: Options, runtime: Runtime, name: str, *, one_place: bool = False
) -> Way:
    """The way of that kind.

    @param name: the same whenever this migration is run.
    @param one_place: where to connect to must not change, whichever receiver listens there.
    """
    if kind == Data.SSH:
        from .tunnel import Tunnel  # noqa: PLC0415

        return Tunnel(name)
    from .direct_tls import DirectTLS  # noqa: PLC0415

    return DirectTLS(
        runtime,
        options.uri.host,
        options["data-address"],
        options["data-port"] or 0,
        one_place=one_place,
        # With another way to be tried, this one is not waited for.
        patient=options["data"] == Data.TLS and bool(options["retry"]),
    )
