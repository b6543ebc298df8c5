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


def printable(value: object) -> str:
    """C{value} as text without control characters: others choose some of what is printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))
