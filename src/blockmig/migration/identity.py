"""Who a migration is: the id that people call it by, and the secret that proves it.

Owns the form of both, and the proofs; who must prove what is up to the two ends of the hand-off.

Rules (design, section 2: R10):

* an id is no secret, and proves nothing: it keeps out those who do not mean this migration;
* a secret never leaves this process: what is sent is an HMAC over what is claimed and over a nonce
  that the other side has chosen, so that nobody who has read it can use it for something else;
* the secret UUID of a migration is not made here: its record has it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

LONGEST_ID: Final = 64
"""Characters."""

SHORTEST_SECRET: Final = 16
"""Bytes."""

_ID: Final = re.compile(r"[A-Za-z0-9._-]+")
_NONCE_SIZE: Final = 16


class BadIdentity(ValueError):
    """An id or a secret cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a human has said of a migration's identity; equal at both ends.

    @ivar id: its id; "" where none was chosen.
    @ivar secret: what both ends know and nobody else; empty where there is none.
    @raise BadIdentity: one of them cannot be used.
    """

    id: str = ""
    secret: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.id:
            check_id(self.id)
        if self.secret and len(self.secret) < SHORTEST_SECRET:
            raise BadIdentity(f"the secret is too short: {SHORTEST_SECRET} bytes are needed")


ANYBODY: Final = Identity()
"""No identity was chosen."""


def check_id(text: str) -> str:
    """Check that a text can be the id of a migration, and return it.

    @raise BadIdentity: it cannot.
    """
    if len(text) > LONGEST_ID or not _ID.fullmatch(text):
        raise BadIdentity(
            f"an id has 1 to {LONGEST_ID} letters, digits, dots, hyphens and underscores"
        )
    return text


def make_id() -> str:
    """An id for a migration to which nobody has given one."""
    return secrets.token_hex(4)


def make_nonce() -> str:
    """What a proof on one connection must contain."""
    return secrets.token_hex(_NONCE_SIZE)


def prove(secret: bytes, *facts: str | int) -> str:
    """The proof, by one who has the secret, that C{facts} are so: an HMAC-SHA256 in hexadecimal."""
    return hmac.new(secret, json.dumps(facts).encode(), hashlib.sha256).hexdigest()


def is_proof(proof: str, secret: bytes, *facts: str | int) -> bool:
    """Whether that is the proof of C{facts}; takes the same time whatever is wrong with it."""
    return hmac.compare_digest(proof.encode(), prove(secret, *facts).encode())
