"""The two ways in which a command ends early with one sentence instead of a traceback.

`__main__` and `train.py` print the sentence on stderr. Anything else is a defect and keeps its traceback.
"""


class InputError(Exception):
    """What the user gave cannot be used: says what is wrong, where and what to do; exit status 2, nothing written."""


class RunError(Exception):
    """Work that had begun cannot go on: says what happened and what is left; exit status 1."""
