"""The options for TLS: what they are, what contradicts what, and the policies that they make.

Rules (design, section 3):

* whoever gave certificates to a listener wants TLS: it is required there unless `--tls` says
  otherwise;
* nothing that was said of TLS is ignored: options that would have no effect are refused;
* for a sender the URI says whether TLS is used, and options become part of it, so that what is
  passed on (to a server that mirrors, to a relay) says it too.

What needs pyOpenSSL is imported when TLS is used: no other command waits for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ..nbd import NBDURI, BadURI, parse_uri
from . import usage
from .common import parse_path
from .usage import Flag, Group, Options, Parameter, UsageError
from .values import one_of

if TYPE_CHECKING:
    from ..client import Destination
    from ..transport.certified import ServerCertificates
    from ..transport.tls import ClientTLS, ServerTLS

_CERTIFICATES: Final = Parameter(
    "tls-certificates",
    "The directory with the certificates for TLS, with the names of QEMU, nbdkit and libnbd: "
    "ca-cert.pem, and server-cert.pem and server-key.pem to be connected to, or client-cert.pem "
    "and client-key.pem to connect (`blockmig certificates` makes them).",
    parse_path,
    metavar="DIR",
    group=Group.TLS,
)
_LISTENER: Final = Parameter(
    "tls",
    "Whether connections use TLS: off, on (those that ask for it), or require (others are not "
    "served).",
    one_of("off", "on", "require"),
    metavar="WHEN",
    default_text="require with --tls-certificates, else off",
    group=Group.TLS,
)
_SENDER: Final = Parameter(
    "tls",
    "Whether the connection uses TLS: require, as with a URI that begins with nbds, or off. A "
    "server that does not offer TLS is never gone on with.",
    one_of("off", "require"),
    metavar="WHEN",
    default_text="what URI says",
    group=Group.TLS,
)
VERIFY_PEER: Final = Flag(
    "tls-verify-peer",
    "Let in only clients that show a certificate that the CA in ca-cert.pem has signed.",
    group=Group.TLS,
)
_ALLOW_NAME: Final = Parameter(
    "allow-name",
    "Let in only clients whose certificate has this NAME as its common name or as a DNS name, "
    "letter by letter. May be given several times. Implies --tls-verify-peer.",
    metavar="NAME",
    repeated=True,
    default_text="any",
    group=Group.TLS,
)
_HOSTNAME: Final = Parameter(
    "tls-hostname",
    "The name that the server's certificate has to have.",
    metavar="NAME",
    default_text="the host in URI; with a UNIX socket, any",
    group=Group.TLS,
)
_RECEIVER_CERTIFICATES: Final = _CERTIFICATES._replace(
    help=f"{_CERTIFICATES.help} With - they come by standard input instead (after the line of "
    "--secret -), in PEM form up to an empty line: the certificate, that of the CA, and the key.",
    metavar="DIR|-",
)
LISTENER_PARAMETERS: Final = (_CERTIFICATES, _LISTENER, _ALLOW_NAME)
RECEIVER_PARAMETERS: Final = (_RECEIVER_CERTIFICATES, _LISTENER, _ALLOW_NAME)
SENDER_PARAMETERS: Final = (_CERTIFICATES, _SENDER, _HOSTNAME)


STANDARD_INPUT: Final = "-"
LARGEST_BUNDLE: Final = 32768
"""Bytes of certificates that are in no file."""


# What is said.


def certificates_from_input(options: Options) -> bytes | None:
    """What standard input has of certificates; None where they are in files.

    @raise UsageError: there is too much of it, or no standard input.
    """
    if options["tls-certificates"] != STANDARD_INPUT:
        return None
    if sys.stdin is None:
        raise UsageError("--tls-certificates: standard input is closed")
    text = b""
    while (line := sys.stdin.buffer.readline(LARGEST_BUNDLE)).strip():
        text += line
        if len(text) > LARGEST_BUNDLE:
            raise UsageError(f"--tls-certificates: -: more than {LARGEST_BUNDLE} bytes came")
    return text


def check_listener(options: Options, listen: Sequence[str]) -> None:
    """Check the options of a command that is connected to, and let C{tls} have a value.

    @param listen: where it listens, as people wrote it.
    @raise UsageError: they contradict each other, or one is missing.
    """
    given, mode = options["tls-certificates"], options["tls"]
    if mode is None:
        mode = options["tls"] = "off" if given is None else "require"
    names = options["allow-name"]
    if mode != "off" and given is None:
        raise UsageError(f"--tls {mode} needs --tls-certificates: the directory with them")
    if mode != "off" and options["oldstyle"]:
        raise UsageError("--oldstyle has no TLS: leave out --tls-certificates")
    for name in ("tls-verify-peer", "allow-name"):
        if options[name] and mode == "off":
            raise UsageError(f"--{name} needs TLS: give --tls-certificates")
    for name in ("allow-name", "tls-verify-peer"):
        if options[name] and mode != "require":
            raise UsageError(f"--{name} keeps nobody out who does not use TLS: --tls require")
    for name in names:
        if not name or "=" in name:
            raise UsageError(
                f"--allow-name: {name!r} is no name: give the common name alone, without CN="
            )
    for text in listen:
        _check_listening(text, mode)


def _check_listening(text: str, mode: str) -> None:
    """Check a URI to listen at, which says whether clients use TLS."""
    if "://" not in text:
        return
    try:
        uri = parse_uri(text)
    except BadURI:
        return  # refused where it is listened at, with other things that it can be
    if uri != uri.place:
        raise UsageError(f"--listen: {text}: give --tls-certificates, and no tls- in the URI")
    if uri.tls and mode == "off":
        raise UsageError(f"--listen: {text}: TLS needs --tls-certificates")
    if not uri.tls and mode == "require":
        secure = str(replace(uri, tls=True))
        raise UsageError(f"--listen: {text}: TLS is required, so clients use {secure}")


def endpoint_of(text: str) -> str:
    """C{text}, of C{--listen}, as an endpoint: TLS is begun by what listens there."""
    if "://" not in text:
        return text
    try:
        uri = parse_uri(text)
    except BadURI:
        return text
    return str(replace(uri, tls=False)) if uri.tls else text


def secure(uri: NBDURI, options: Options) -> NBDURI:
    """C{uri} with what the options of a command that connects say of TLS.

    @raise UsageError: they contradict it.
    """
    given, name, mode = (options[each] for each in ("tls-certificates", "tls-hostname", "tls"))
    if uri.tls and mode == "off":
        raise UsageError(f"{uri.place} uses TLS, and --tls off says not to: write nbd")
    if mode == "require":
        uri = replace(uri, tls=True)
    if not uri.tls:
        for option in ("tls-certificates", "tls-hostname"):
            if options[option]:
                raise UsageError(
                    f"--{option} is for TLS, and {uri} does not use it: write "
                    f"{replace(uri, tls=True)}, or give --tls require"
                )
        return uri
    if given is not None:
        if uri.certificates not in ("", given):
            raise UsageError("--tls-certificates: the URI names another directory")
        uri = replace(uri, certificates=given)
    if name is not None:
        if uri.tls_hostname not in ("", name):
            raise UsageError("--tls-hostname: the URI says another name")
        uri = usage.parse_value(name, lambda text: replace(uri, tls_hostname=text))
    return uri


def with_certificates(uri: NBDURI, directory: str | None) -> NBDURI:
    """C{uri}; where it uses TLS, and names no certificates, with those in C{directory}."""
    if not uri.tls or uri.certificates or not directory:
        return uri
    return replace(uri, certificates=directory)


def absolute(uri: NBDURI) -> NBDURI:
    """C{uri} with absolute paths, for a process whose current directory is another."""
    return replace(
        uri,
        socket=os.path.abspath(uri.socket) if uri.socket else "",
        certificates=os.path.abspath(uri.certificates) if uri.certificates else "",
    )


# What it makes.


def check_extra() -> None:
    """Check that what TLS needs is installed.

    @raise Refused: it is not.
    """
    from ..errors import Refused  # noqa: PLC0415

    try:
        import OpenSSL  # noqa: F401, PLC0415
        import service_identity  # noqa: F401, PLC0415
    except ImportError as error:
        raise Refused(
            f"TLS needs pyOpenSSL and service-identity ({error}): pip install 'blockmig[tls]'"
        ) from None


@dataclass(frozen=True)
class ListenerTLS:
    """What a command that is connected to has for TLS.

    @ivar policy: how connections speak it; None for not at all.
    @ivar certificates: where that has its certificates from; None where there is no policy.
    @ivar verified: clients show certificates.
    """

    policy: ServerTLS | None = None
    certificates: ServerCertificates | None = None
    verified: bool = False

    @property
    def required(self) -> bool:
        return self.policy is not None and self.policy.required

    @property
    def described(self) -> str:
        """In a word, for a status."""
        if self.policy is None:
            return "off"
        return "require" if self.policy.required else "on"

    def read_again(self) -> None:
        """Read the certificates anew; those that cannot be used change nothing."""
        if self.certificates is None:
            return
        from twisted.logger import Logger  # noqa: PLC0415

        from ..transport.tls import TLSFailure  # noqa: PLC0415

        log = Logger()
        try:
            self.certificates.reload()
        except TLSFailure as error:
            log.error(
                "the certificates were not replaced: {why}; those that were read before are used",
                event="certificates",
                why=str(error),
            )
        else:
            log.info("the certificates were read again", event="certificates")


def listener_tls(options: Options, *, for_each: bool, held: bytes | None = None) -> ListenerTLS:
    """What the options of a listener make.

    @param for_each: read files that have changed for the next connection.
    @param held: certificates that came by standard input, to be used instead of files.
    @raise Refused: the certificates cannot be used, or what TLS needs is not installed.
    """
    if options["tls"] == "off":
        return ListenerTLS()
    check_extra()
    from ..errors import Refused  # noqa: PLC0415
    from ..transport.certified import ServerCertificates  # noqa: PLC0415
    from ..transport.tls import TLSFailure  # noqa: PLC0415

    names = options["allow-name"]
    verified = bool(options["tls-verify-peer"] or names)
    if held is not None:
        return _held_tls(held, options, verified)
    try:
        certificates = ServerCertificates(
            options["tls-certificates"], verify_peer=verified, for_each=for_each
        )
    except TLSFailure as error:
        raise Refused(f"--tls-certificates: {error}") from None
    policy = certificates.policy(required=options["tls"] == "require", allowed=names)
    return ListenerTLS(policy, certificates, verified)


def _held_tls(text: bytes, options: Options, verified: bool) -> ListenerTLS:
    from ..errors import Refused  # noqa: PLC0415
    from ..transport.certificates import Role, parse, wall_time  # noqa: PLC0415
    from ..transport.certified import held_server_tls  # noqa: PLC0415
    from ..transport.tls import TLSFailure  # noqa: PLC0415

    try:
        found = parse(text, "standard input", Role.SERVER, wall_time())
        policy = held_server_tls(
            found,
            verify_peer=verified,
            required=options["tls"] == "require",
            allowed=options["allow-name"],
        )
    except TLSFailure as error:
        raise Refused(f"--tls-certificates: {error}") from None
    return ListenerTLS(policy, None, verified)


def client_policy(uri: NBDURI) -> ClientTLS | None:
    """How a connection to C{uri} speaks TLS; None where it does not.

    @raise Refused: what TLS needs is not installed.
    """
    if not uri.tls:
        return None
    check_extra()
    from ..transport.certified import tls_of  # noqa: PLC0415

    return tls_of(uri)


def check_client(uri: NBDURI, policy: ClientTLS | None) -> None:
    """Check that our certificates can be used now, before anything begins.

    @raise Refused: they cannot.
    """
    if policy is None:
        return
    from ..errors import Refused  # noqa: PLC0415
    from ..transport.tls import TLSFailure  # noqa: PLC0415

    try:
        policy.creator()
    except TLSFailure as error:
        raise Refused(f"TLS to {uri.place}: {error}") from None


def held_policy(uri: NBDURI, text: bytes) -> ClientTLS:
    """How a connection to C{uri} speaks TLS, with certificates that are in no file.

    @param text: the certificate, its key and the CA's certificate, as PEM.
    @raise Refused: they cannot be used, or what TLS needs is not installed.
    """
    check_extra()
    from ..errors import Refused  # noqa: PLC0415
    from ..transport.certificates import Role, parse, wall_time  # noqa: PLC0415
    from ..transport.certified import held_client_tls  # noqa: PLC0415
    from ..transport.tls import TLSFailure  # noqa: PLC0415

    try:
        found = parse(text, "the certificates that came with it", Role.CLIENT, wall_time())
        return held_client_tls(found, uri.tls_hostname or uri.host)
    except TLSFailure as error:
        raise Refused(f"TLS to {uri.place}: {error}") from None


def destination_at(
    uri: Any,
    make_endpoint: Callable[[Any, Any], Any],
    reactor: Any,
    address: str = "",
    *,
    tls: ClientTLS | None = None,
) -> Destination:
    """The destination at C{uri}, as records and messages know it, with its TLS.

        @param make_endpoint: makes the endpoint to connect to, from the reactor and its URI.
        @param address: what it is called; "" for its URI.
        @param tls: how connections to it speak TLS, where that is not up to its URI.
    @raise Refused: what TLS needs is not installed.
    """
    from ..client import Destination  # noqa: PLC0415

    if not isinstance(uri, NBDURI):  # a place that is reached in another way
        return Destination(make_endpoint(reactor, uri), uri.export, address or str(uri), tls)
    return Destination(
        make_endpoint(reactor, uri),
        uri.export,
        address or str(uri.place),
        tls=tls or client_policy(uri),
    )
