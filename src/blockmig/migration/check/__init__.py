"""Looks whether a migration could begin, without beginning it.

Owns what is looked at, and the words for what was found. What decides is asked where a migration
asks it, in `source` and at the receiver: nothing is decided here that a migration would decide
otherwise.
"""
