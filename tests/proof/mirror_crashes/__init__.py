"""A mirror under a client that writes, struck at any point, and broken off at any.

Owns the cases, and what must be so after each of them; the programs are L{tests.proof.launcher}'s.
A server mirrors its disk to a receiver while a L{tests.support.mirroring.Writer} writes, and at one
point

* the server dies, in each of its passes, in the hold, or around retiring;
* or the receiver does;
* or the mirror is broken off on request.

Then both are held still, and the bytes, and the log of what was answered, show which copy is right;
`inspect` must know it, and exactly one copy is canonical. Then it goes on: a dead receiver is
started again, and the server completes by itself, its writer noticing nothing but the hold; a dead
server is started again with another writer and another mirror, or, where the source was retired, is
finished by `send`; a mirror that was broken off is begun again, and its writer has gone on
meanwhile. At the end both ended with 0, nothing is left but the copy (and the source's mark), and
it has all that was ever answered.

There are two plays: in C{passes} the wire is slow, so that there are passes in which something
happens; in C{hold} it is quick, as usual. Each is played once to learn its points.

From the bottom up: C{plays}, what a case is; C{room}, its directories and programs; C{playing},
how a case is played; C{running}, which cases there are, and all of them side by side.

C{python -m tests.proof.test_mirror_crashes [FILTER ...]} plays it outside of pytest.
"""
