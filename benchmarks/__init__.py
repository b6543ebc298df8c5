"""What blockmig takes, beside the programs that people would use instead: C{make bench}.

C{python -m benchmarks} runs the cases (C{benchmarks/cases}), prints a table for each, and keeps all
figures of all rounds in one JSON file; C{--write} makes the picture and the tables in
C{docs/performance.md} from it.

Rules of measuring:

* competitors take turns, round after round, so that whatever else the machine does hits all of them
  alike, and nobody has the same predecessor every time; what counts is the median;
* the first round is thrown away, and is where copies are compared with the source;
* memory that is written to is in the same state for everybody. The host of a guest takes free pages
  back within seconds, and the first write to such a page costs several times as much: so either
  everybody writes into the same file, whose pages are there, or free memory is touched right before
  each run;
* a time is that from the start of the sender, whose receiver listens, to the end of both; processor
  seconds are those of both ends;
* where a copy is to be durable, it is so within that time, whoever makes it.
"""
