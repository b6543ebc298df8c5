"""The command line: options, log lines, progress, exit statuses, and twistd's way in.

`commands` is the table of the commands, each of which has a module of its own. What takes long to
import is imported by a command once its options were found to make sense, so that `--help` and
errors are quick. The only room that may import the reactor at module level (none of it does).
"""
