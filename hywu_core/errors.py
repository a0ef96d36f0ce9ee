"""The one error family that reaches users: a sentence saying what was wrong, with numbers, and what to do."""


class HywuError(ValueError):
    """Bad input: the message is one clear sentence, shown as it is on the command line and on a red node."""


def require_positive(config: object, *names: str) -> None:
    """HywuError unless these fields of a config are at least 1, or None: not given."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < 1:
            raise HywuError(f"{name} is {getattr(config, name)}; it must be at least 1.")
