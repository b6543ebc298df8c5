"""What a person sees, kept as text: one file for each kind of terminal.

``python -m tests.screens`` writes the files anew; a test (tests/unit/cli/test_screens.py) compares
them. An escape character is shown as a caret and a bracket, a return to the first column as such.
"""
