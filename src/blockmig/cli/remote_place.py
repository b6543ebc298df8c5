"""Where `move` takes a disk: HOST:PATH, as people write it for scp and rsync.

Owns the form, and the address by which records know such a place: C{ssh://HOST/PATH}, which is the
same in every run, whatever sockets a run happens to use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

_PLACE: Final = re.compile(r"((?:[^\[\]:/]*@)?(?:\[[^\[\]/]*\]|[^:/\[\]]*)):(.*)", re.DOTALL)
_HOME: Final = "~/"
_SCHEME: Final = "ssh://"


class BadPlace(ValueError):
    """The text is no HOST:PATH; the message says why."""


@dataclass(frozen=True, slots=True)
class RemotePlace:
    """A disk on another host.

    @ivar host: the host as ssh knows it: a name, an alias of ~/.ssh/config, or USER@HOST; an IPv6
        address is in brackets.
    @ivar path: of the disk; a relative one begins at the home directory there.
    """

    host: str
    path: str
    export: ClassVar[str] = ""

    def __str__(self) -> str:
        path = self.path if self.path.startswith("/") else f"/{_HOME}{self.path}"
        return f"{_SCHEME}{self.host}{path}"

    @property
    def shown(self) -> str:
        """As people write it."""
        return f"{self.host}:{self.path}"

    @property
    def ssh_host(self) -> str:
        """The host as an argument of ssh, which takes an IPv6 address without brackets."""
        return self.host.replace("[", "").replace("]", "")


def is_remote(text: str) -> bool:
    """Whether a text names a disk on a host; as for scp, a path with a slash before its first colon
    does not."""
    return text.startswith(_SCHEME) or _PLACE.fullmatch(text) is not None


def parse_place(text: str) -> RemotePlace:
    """The place that C{text} names: HOST:PATH, or C{ssh://HOST/PATH} as in a record.

    @raise BadPlace: it names none.
    """
    if text.startswith(_SCHEME):
        host, slash, path = text.removeprefix(_SCHEME).partition("/")
        return _checked(text, host, slash + path if not path.startswith(_HOME) else path)
    if "://" in text:
        raise BadPlace(f"{text!r} is a URI, and HOST:PATH is expected (`send` takes NBD URIs)")
    match = _PLACE.fullmatch(text)
    if match is None:
        raise BadPlace(f"{text!r} is not HOST:PATH, such as web2.example:/var/lib/images/web.img")
    return _checked(text, match[1], match[2])


def _checked(text: str, host: str, path: str) -> RemotePlace:
    path = path.removeprefix(_HOME)
    if not host.rpartition("@")[2].strip("[]"):
        raise BadPlace(f"{text!r} names no host")
    odd = any(not letter.isprintable() or letter == " " for letter in host)
    if odd or host.lstrip("[").startswith("-"):  # ssh is given it without brackets
        raise BadPlace(f"{text!r}: {host!r} cannot be a host")
    if not path or path.endswith("/"):
        raise BadPlace(f"{text!r} names no file: give the path of the disk on {host}")
    # An absolute /~/x would be written as x in the home directory is.
    if path.startswith(("~", "/~/")) or "\0" in path:
        raise BadPlace(f"{text!r}: {path!r} cannot be a path here")
    return RemotePlace(host, path)
