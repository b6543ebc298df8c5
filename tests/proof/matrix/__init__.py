"""The crash matrix: the real programs, struck at every point at which anything changes.

Owns the cases, and what must be so after each of them. A case is a scenario, played by a real
sender and a real receiver, one of which is struck at one point: it dies (and its machine perhaps
with it), or hangs. Then:

* the truth is established by looking at the bytes: which copy has all of them, and whether the
  source is there, and unmarked;
* `inspect` must know it: neither side may claim what is not so, the source's verdict must say
  whether it was retired, and the two together must name the canonical copy;
* what has ended is started again with the same command lines, except what ended with 0 and what its
  own records call complete; both must then end with 0, with every byte at the destination, the
  source gone or marked, the records of what is finished and no other file left;
* each is started once more, and ends with 0 without writing a byte.

The scenarios: C{fresh}, a migration from its beginning; C{recopy}, the same once more where the
first try broke off when the whole copy was recorded; C{finish}, where it broke off just after the
retirement; C{stranger}, a sender that is not blockmig's, sends no FLUSH, and relies on the receiver
that what it calls whole is whole (only the receiver is struck). Each is played once without a
strike, to learn its points.

Where C{unknown} is allowed: where neither a disk nor a record is (R7 can say nothing of nothing),
at the destination before its file is made.

Which restarts: C{both}, where the other one is killed (and its power fails, if the first one's did)
before anybody looks; C{one}, where it goes on and is only held still while somebody looks. In some
of them (C{eager}) a receiver is started again although its own records say that it is complete,
with --overwrite too (C{overwrite}): it ends with 0 at once, and has touched nothing, so that the
sender ends without it. In others (C{late})
it is not started again before the sender has ended without it, where it does that.

From the bottom up: C{plays}, what a case is; C{room}, its directories and programs; C{checks};
C{playing}, how a case is played; C{cases}, which there are; C{running}, all of them side by side.

C{python -m tests.proof.test_crash_matrix [--full] [FILTER ...]} plays it outside of pytest.
"""
