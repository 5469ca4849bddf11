"""The one error a user meets, a single line without secrets, and the exit codes."""

import errno
import io
import os
import sys
from collections.abc import Callable
from traceback import format_exception

from mla_lm.config.secret import hidden

STOPPED, INTERRUPTED, UNREAD = 143, 130, 141  # exit codes: 128 + SIGTERM, SIGINT, SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a file


class UserError(ValueError):
    """Names the key or file, the value, the rule and what to do; ends a command with status 2."""

    def __init__(self, line: str) -> None:
        super().__init__(" ".join(hidden(line).splitlines()))


def one_line(error: BaseException) -> str:
    """What a library raised, short enough for the line of a `UserError`."""
    return " ".join(hidden(f"{type(error).__name__}: {error}").split())[:200]


def guard(action: Callable[[], None]) -> None:
    """Run `action`; turn a UserError or an unusable file into one line and status 2.

    What a terminal or pipe cannot show is printed as `?`: it is no reason to lose a run. When
    nobody reads the output any more, as behind `| head`, it ends without a message.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error never fails
        sys.stdout.reconfigure(errors="replace")
    sys.excepthook = lambda *error: print(
        hidden("".join(format_exception(*error))), end="", file=sys.stderr
    )
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        raise SystemExit(UNREAD) from None
    except UserError as error:
        _end_with(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        if error.filename is None:
            _discard_output()
        _end_with(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _end_with(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2) from None


def _discard_output() -> None:
    """Let the flush at exit succeed, though what standard output wrote to is gone or full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
