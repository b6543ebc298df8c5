"""What the two ends of a migration tell each other outside the data, by the side export.

Owns the message and the channel that carries it; who says what, and when, is `source`'s and
`destination`'s affair.
"""
