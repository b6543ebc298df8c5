"""What stands beside a disk about its migrations: the files, what they permit, what they prove.

Owns the records and every conclusion from them, so that it can be read in one place why a disk is
said to be canonical.
"""
