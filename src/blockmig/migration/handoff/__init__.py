"""What the two ends of a migration exchange outside the data, through the side export.

Owns the message and the channel that carries it. Who sends which message, and when, is up to
`source` and `destination`.
"""
