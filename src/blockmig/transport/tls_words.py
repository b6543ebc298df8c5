"""Why TLS failed, in words for people.

OpenSSL says it in codes, which name what its own code was doing, and the other end says it in
alerts. Words that a policy has found by itself (it raised a L{TLSFailure}, or an error whose only
argument is a text) are passed on.
"""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

from .tls import TLSFailure

# What OpenSSL's reasons contain, the first that does; and what it means.
_REASONS: Final = (
    ("alert unknown ca", "the other end does not know the CA that has signed our certificate"),
    ("alert certificate expired", "the other end says that our certificate has expired"),
    ("alert certificate revoked", "the other end says that our certificate was revoked"),
    ("alert certificate required", "the other end wants a certificate, and we have shown none"),
    ("alert bad certificate", "the other end does not accept our certificate"),
    ("alert unsupported certificate", "the other end does not accept a certificate like ours"),
    ("alert certificate unknown", "the other end does not accept our certificate"),
    ("alert access denied", "the other end does not let us in"),
    ("alert protocol version", "no TLS version in common: here it is 1.2 and later"),
    ("alert handshake failure", "the other end refuses TLS: is a certificate or a cipher missing?"),
    ("alert no renegotiation", "renegotiation is not allowed"),
    ("alert", "the other end has refused TLS"),
    ("did not return a certificate", "it has shown no certificate"),
    ("certificate verify failed", "its certificate cannot be verified"),
    ("unsupported protocol", "no TLS version in common: here it is 1.2 and later"),
    ("no protocols available", "no TLS version in common: here it is 1.2 and later"),
    ("no shared cipher", "no TLS cipher in common"),
    ("wrong version number", "what it sends is not TLS"),
    ("packet length too long", "what it sends is not TLS"),
    ("http request", "what it sends is not TLS"),
    ("unknown protocol", "what it sends is not TLS"),
    ("renegotiation", "renegotiation is not allowed"),
    ("unexpected eof", "the connection was cut off"),
    ("record layer failure", "what it sends was changed on its way, or is not TLS"),
    ("bad record", "what it sends was changed on its way, or is not TLS"),
    ("decryption failed", "what it sends was changed on its way, or is not TLS"),
)


def describe_tls_error(error: BaseException) -> str:
    """Why TLS failed.

    @param error: what was raised, by OpenSSL or by a policy's own checks.
    """
    if isinstance(error, TLSFailure):
        return str(error)
    if not isinstance(error, SSL.Error) or not error.args:
        return str(error) or type(error).__name__
    if isinstance(error.args[0], str):  # of one that a policy has raised
        return error.args[0]
    stack = error.args[0] if isinstance(error.args[0], list) else []
    reason = str(stack[-1][-1]) if stack else str(error.args[-1])
    for part, words in _REASONS:
        if part in reason.lower():
            return f"{words} (OpenSSL: {reason})"
    return f"TLS failed (OpenSSL: {reason or 'no reason given'})"
