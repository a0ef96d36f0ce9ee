"""The one error family that reaches users: a sentence saying what was wrong, with numbers, and what to do."""


class HywuError(ValueError):
    """Bad input: the message is one clear sentence, shown as it is on the command line and on a red node."""
