"""The end that gets the disk: it accepts one migration, and says when that is complete.

C{receiver} is the way in. A migration (C{migration}, with the C{machine} that says when what is
done) consists of one C{attempt} after another; of the C{disk}, what is put on C{record} of it, and
how far its C{durability} goes; of what senders say (C{messages}); of what may go wrong
(C{disk_failures}, C{rescue}); and of its C{completion} and C{outcome}.
"""
