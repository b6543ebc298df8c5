"""blockmig moves the disks of running machines between hosts over NBD.

The folders are the layers, imports go downwards only: `cli`, `migration`, `server`, `transport`,
`storage`, `nbd`. `interfaces` stands beside them: what an embedder implements and is given.
"""

__version__ = "0.1.0"
