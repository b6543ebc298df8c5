"""Fuzzing: programs that give the product inputs which nobody would write, and watch what it does.

Owns the targets (what is fed, and what must be true of it afterwards), the two engines that make
inputs, and the corpora from which they begin. `make fuzz SECONDS=…` runs all of it; `make test`
runs every input of the corpora through its target (tests/unit/test_fuzz.py).

Rules:

* a target is a function of bytes, the same each time: no time, no randomness, no network;
* it raises whatever the product raises that is not the product's own word for "the peer is wrong",
  and L{Broken} where the product did what it must not;
* an input that was found becomes a unit test of its own, of the module that was mended.
"""
