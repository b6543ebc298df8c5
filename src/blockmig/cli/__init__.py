"""The command line: options, log lines, progress, exit statuses, and twistd's way in.

The only layer that may import the reactor at module level (none does, so that `--help` is quick).
"""
