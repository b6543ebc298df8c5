"""Which migration this is, and whose connection (R10): identity, and the fallback to plain NBD.

The hand-off's model has one receiver, which is the right one.  Here there is an address, at which
may listen, from one moment to the next: the right receiver (P), a receiver at another place (Q),
a foreign NBD server (F), or nobody.  And strangers come to P as often as they like: they claim a
migration of their own, write, flush, say *copied*, disconnect, or do nothing and stay.

The modules, from the bottom up: C{state}, C{rules} (the steps as data, the rules, the cases),
C{receiving} (what a receiver lets in), C{machine} (the transitions), C{truth} (what must be so),
C{scenarios}, C{mutations}.

What is abstract
================

A copy is half or whole, of our disk or of a stranger's.  A record is written in one step, which is
durable (what is not is the hand-off's model's, and the memory's).  A message and its answer are one
step.  A process dies with its memory at any step: claims, attempts, and a place that no record has.
Crashes, restarts, changes of who listens and the acts of strangers are not bounded: the states are
finite.  So there is no count of faults.

A receiver without a record makes up its place when it starts; here a number that nothing remembers.

A B{calm run} has the right receiver at the address, and no more acts of strangers; but what they
have begun stays as it is, their connections are open, and they are silent.
"""
