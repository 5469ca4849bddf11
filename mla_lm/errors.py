"""The one error a user is expected to meet: a single line that says what to mend."""


class UserError(ValueError):
    """Names the key or file, the value, the rule and what to do; ends a command with status 2."""

    def __init__(self, line: str) -> None:
        super().__init__(" ".join(line.splitlines()))


def one_line(error: BaseException) -> str:
    """What a library raised, short enough for the line of a `UserError`."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
