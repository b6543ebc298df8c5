"""The end that gets the disk: it accepts one migration, and reports when that is complete.

C{receiver} is the way in. Senders come through C{connections} to two exports, C{export} and
C{handoff_export}, which turn what they ask for into inputs of the migration's machine. A migration
(C{migration}, with the C{machine} that decides when something is done) consists of one C{attempt}
after another; of the C{disk}, the C{record} of it, and its C{durability}; of senders' messages
(C{message_handler}); of what may go wrong (C{disk_failures}, C{rescue}); and of its C{completion}
and C{outcome}. How it stands is said by C{report} in words, and by C{migration} in numbers.
"""
