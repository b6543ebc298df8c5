"""Migrations: the two ends of one, and the hand-off between them.

`handoff` is what the ends say to each other outside the data, `records` the files that are kept
beside a disk, `source` and `destination` are the ends, and `mirror` is a source that clients go on
using. Knows the wire through `nbd`, disks through `storage`, sockets through `transport`, other
servers through `client`, and connections of clients through `server`.
"""
