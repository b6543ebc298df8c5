"""Numbers of bytes and of seconds as people read them, and texts of others."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: float) -> str:
    """A number of bytes in powers of 1024, with one decimal if it is not whole."""
    power = 0
    # 1024 of a unit, after rounding, is shown as 1 of the next.
    while power < len(_UNITS) - 1 and round(count, 1) >= 1024:
        count /= 1024
        power += 1
    whole = count == int(count)
    return f"{count:.0f} {_UNITS[power]}" if whole else f"{count:.1f} {_UNITS[power]}"


def describe_size(size: int) -> str:
    """A number of bytes, exactly: C{20 GiB}, or C{4.9 KiB (5000 bytes)}."""
    text = format_bytes(size)
    return f"{text} ({size} bytes)" if "." in text else text


def format_duration(seconds: float) -> str:
    """A number of seconds in words: C{4.2 s}, C{3 min 20 s}, C{2 h 5 min}, C{3 d 4 h}."""
    if seconds < 60:
        return f"{min(seconds, 59.9):.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


LONGEST_TEXT: Final = 4096
"""Characters of somebody else's text that are shown: a path has no more."""

_LEFT_OUT: Final = " … "


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """C{text}, or its beginning and its end, if it has more characters than C{longest}."""
    if len(text) <= longest:
        return text
    half = (longest - len(_LEFT_OUT)) // 2
    return text[:half] + _LEFT_OUT + text[-half:]


def printable(value: object, longest: int = LONGEST_TEXT) -> str:
    """C{value} as text for people: one line, not too long, and nothing that a terminal obeys.

    For all that others have chosen: peers, other processes, records, names of files. Control
    characters, and what changes the direction of writing, become question marks.

    @param longest: characters, of which those in the middle are left out where there are more.
    """
    text = shortened(str(value), longest)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)
