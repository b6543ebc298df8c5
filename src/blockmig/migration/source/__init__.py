"""The end that has the disk: it sends, retires and disconnects.

C{sender} is the way in. It makes one C{attempt} after another, which share a C{context}, where the
outcomes of an attempt are as well; C{machine} has the order of an attempt's end. An attempt asks
whether it may begin (C{admission}; C{foreign}, if the destination is another program's), copies
(C{copier}) what the C{passes} say, checks the source (C{watch}) and retires it (C{retirement}). The
C{record} says how far it is, C{progress} counts, and C{finisher} does what is left once the source
is retired.
"""
