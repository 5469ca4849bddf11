"""The one error a user meets, a single line that says what to mend, and the exit codes."""

import errno
import os
import select
import sys
from collections.abc import Callable

STOPPED, INTERRUPTED, UNREAD = 143, 130, 141  # exit status: 128 + SIGTERM, SIGINT, SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a file


class UserError(ValueError):
    """Names the key or file, the value, the rule and what to do; ends a command with status 2."""

    def __init__(self, line: str) -> None:
        super().__init__(" ".join(line.splitlines()))


def one_line(error: BaseException) -> str:
    """What a library raised, short enough for the line of a `UserError`."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def guard(action: Callable[[], None]) -> None:
    """Run `action`; a UserError, or a file that cannot be used, ends it with one line, status 2.

    A reader that has gone, as `head` does, ends it without a word.
    """
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:
        if _can_print():  # another reader has gone
            raise
        raise SystemExit(UNREAD) from None
    except (UserError, OSError) as error:
        print(f"error: {_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _line(error: UserError | OSError) -> str:
    """Raises an OSError that is neither of a file nor of a full disk."""
    if isinstance(error, UserError):
        return str(error)
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if error.errno not in FULL:
        raise error
    _can_print()
    return str(error.strerror)


def _can_print() -> bool:
    """Whether somebody reads what is printed, and a disk has room; else it goes nowhere."""
    try:
        reader = select.poll()
        reader.register(sys.stdout, select.POLLOUT)
        sys.stdout.flush()
        if not any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll(0)):
            return True
    except OSError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False
