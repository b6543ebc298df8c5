"""The command line: options, log lines, progress, exit statuses, and the twistd plugin.

`commands` is the table of the commands. The module of a command has its options; if it needs the
reactor, what it does there is an operation, in `NAME_operation`. What takes long to import is
imported only once the options are known to be valid, so that `--help` and usage errors are quick.
The only package that may import the reactor at module level (no module does).
"""
