"""Answers questions about the disk for which somebody must look, in a thread.

Owns who waits for which answer. Rules (design, section 2: R10, R12):

* one look at a time is under way, whoever asks; who asks the same meanwhile, or just after that, is
  given the same answer;
* a connection may ask a few times, and nothing is kept for one that is gone;
* nobody waits for a look but who has asked: when the end begins they are answered at once, and
  what is found later is nobody's. A look may take for ever (a network file system), so it must not
  need the disk's owner to keep the disk open.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final
from weakref import WeakKeyDictionary

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.python.failure import Failure

from ...runtime import InThread
from ...server import ServerConnection

_MOST: Final = 16
"""Questions of one connection."""


class Looks:
    """Looks that connections ask for.

    @param look: called in a thread with what was asked.
    @param in_thread: runs a function in a thread.
    @param seconds: the time by the reactor's clock.
    @param fresh: seconds for which an answer is given to others as well.
    """

    def __init__(
        self,
        look: Callable[..., Any],
        in_thread: InThread,
        seconds: Callable[[], float],
        fresh: float = 0.0,
    ) -> None:
        self._look = look
        self._in_thread = in_thread
        self._seconds = seconds
        self._fresh = fresh
        self._asked: WeakKeyDictionary[ServerConnection, int] = WeakKeyDictionary()
        self._waiting: dict[tuple[Hashable, ...], dict[Deferred[Any], ServerConnection]] = {}
        self._is_looking = False
        self._latest: tuple[tuple[Hashable, ...], float, Any] | None = None
        self._ended = False

    def has_asked_enough(self, connection: ServerConnection) -> bool:
        """Whether C{connection} may ask no more; to ask counts."""
        count = self._asked.get(connection, 0)
        self._asked[connection] = count + 1
        return count >= _MOST

    def ask(self, connection: ServerConnection, *question: Hashable) -> Deferred[Any]:
        """Have somebody look.

        @return: fires, or fails, as the look does; fails with L{CancelledError} if the connection
            is gone, or the end has begun, before that.
        """
        if self._ended:
            return fail(CancelledError())
        answer: Deferred[Any] = Deferred()
        if self._latest is not None:
            known, since, outcome = self._latest
            if known == question and self._seconds() < since + self._fresh:
                answer.callback(outcome)
                return answer
        self._waiting.setdefault(question, {})[answer] = connection
        self._next()
        return answer

    def _next(self) -> None:
        if self._is_looking or not self._waiting:
            return
        self._is_looking = True
        question = next(iter(self._waiting))
        self._in_thread(self._look, *question).addBoth(self._found, question)

    def _found(self, outcome: Any, question: tuple[Hashable, ...]) -> None:
        self._is_looking = False
        if self._fresh and not isinstance(outcome, Failure):
            self._latest = question, self._seconds(), outcome
        for answer in self._waiting.pop(question, {}):
            answer.callback(outcome)
        self._next()

    def gone(self, connection: ServerConnection) -> None:
        """Nobody needs the answers any more that C{connection} waits for."""
        self._call_off(lambda asking: asking is connection)

    def end(self) -> None:
        """The end has begun: nobody waits for anything any more."""
        self._ended = True
        self._call_off(lambda asking: True)

    def _call_off(self, is_over: Callable[[ServerConnection], bool]) -> None:
        called_off = []
        for question, answers in list(self._waiting.items()):
            for answer, asking in list(answers.items()):
                if is_over(asking):
                    del answers[answer]
                    called_off.append(answer)
            if not answers:
                del self._waiting[question]
        for answer in called_off:
            answer.errback(CancelledError())
