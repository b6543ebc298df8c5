"""One disk object, one use: who uses which object, in this process.

Owns the claims. Sender, Finisher, Receiver, Server and Mirror each claim what they use when they
are made (a Mirror its Server, whose disk is the Server's already) and give it back when they have
ended. A Sender and a Finisher also claim the records, which they change.

Rules:

* an object is what it is, whatever it is equal to; the path of a disk's records is claimed as a
  text, and is the same for all objects of that disk;
* of one object there is one claim at a time; the next claimant is refused;
* a claim ends with its user, too: one that nobody has a reference to uses nothing;
* all of this is about objects. That two processes do not use one file is up to the file's lock.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any, Final

from .errors import InUse

_claims: Final[dict[int | str, Claim]] = {}


class Claim:
    """The use of one object by one other.

    @param subject: what is used; the path of records as a str.
    @param user: by whom; whoever is no longer there has no claim.
    @param name: what to call the subject in messages.
    @raise InUse: it is used already.
    """

    def __init__(self, subject: Any, user: Any, name: str) -> None:
        check_unclaimed(subject, name)
        self._key = _key(subject)
        self.user = weakref.ref(user, self._gone)
        # No other object may get its id. It may itself refer to its user, which must not be kept.
        self._subject: Any
        try:
            self._subject = weakref.ref(subject, self._gone)
        except TypeError:
            self._subject = subject
        _claims[self._key] = self

    def release(self) -> None:
        """Give the object back; harmless if repeated."""
        if _claims.get(self._key) is self:
            del _claims[self._key]

    def _gone(self, _: object) -> None:
        self.release()


class Claims:
    """Several claims of one user, made together or not at all.

    @param user: whose they are.
    @param name: what to call the subjects in messages.
    @param subjects: what is used.
    @raise InUse: one of them is used already.
    """

    def __init__(self, user: Any, name: str, *subjects: Any) -> None:
        for subject in subjects:
            check_unclaimed(subject, name)
        self._claims = [Claim(subject, user, name) for subject in subjects]

    def release(self) -> None:
        """Give everything back; harmless if repeated."""
        for claim in self._claims:
            claim.release()


def check_unclaimed(subject: Any, name: str) -> None:
    """Check that nobody uses C{subject}.

    @raise InUse: somebody does.
    """
    if _user_of(subject) is None:
        return
    gc.collect()  # it may be one that nobody has, in a circle of references
    user = _user_of(subject)
    if user is not None:
        raise InUse(f"{name}: is used by a {type(user).__name__}; stop that, and wait for its end")


def _key(subject: Any) -> int | str:
    return subject if isinstance(subject, str) else id(subject)


def _user_of(subject: Any) -> Any:
    claim = _claims.get(_key(subject))
    return claim.user() if claim is not None else None


def forget_all() -> None:
    """For tests: whoever uses anything has died with its process."""
    _claims.clear()
