"""The records beside a disk about its migrations: the files, what they permit, and what they prove.

Owns the records and every conclusion drawn from them, so that there is one place to read why a disk
is called canonical.
"""
