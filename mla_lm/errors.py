"""What a user is told: the one error, a single line that says what to mend, and exit codes.

Whatever is printed passes `_Visible`, so that no text of a file can steer a terminal, and no secret
is in an error, a warning or a traceback.
"""

import errno
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

from mla_lm.config.secret import hidden

CONTROLS = re.compile(  # C0 but for tab and newline, C1, line separators, changes of direction
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]"
)
OF_BARS = re.compile(r"\r|(\x1b\[A)+$")  # what progress bars of libraries begin with
STOPPED, INTERRUPTED, UNREAD = 143, 130, 141  # exit codes: 128 + SIGTERM, SIGINT, SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a file


class UserError(ValueError):
    """Names the key or file, the value, the rule and what to do; ends a command with status 2."""

    def __init__(self, line: str) -> None:
        super().__init__(inline(hidden(line)))


def visible(text: str) -> str:
    """The text with its control characters as the escapes of a Python string."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def inline(text: str) -> str:
    """A name, as it may stand in a line of ours: `visible`, without line breaks."""
    return visible(" ".join(text.splitlines()))


class _Visible:
    """A stream whose text is `visible`; rich writes its own to `rich_proxied_file`."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        is_stderr = self.rich_proxied_file is sys.__stderr__
        bar = OF_BARS.match(text) if is_stderr else None
        steering = bar[0] if bar else ""
        rest = text[len(steering) :]
        self.rich_proxied_file.write(steering + visible(hidden(rest) if is_stderr else rest))
        return len(text)


def show_controls() -> None:
    """From now on standard output and error show what is printed `visible`."""
    sys.stdout, sys.stderr = cast(TextIO, _Visible(sys.stdout)), cast(TextIO, _Visible(sys.stderr))


def raw_output() -> TextIO:
    """Standard output without that, for what steers a terminal on purpose or is not for one."""
    stream: Any = sys.stdout
    while hasattr(stream, "rich_proxied_file"):
        stream = stream.rich_proxied_file
    return cast(TextIO, stream)


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
    show_controls()
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


def notice(line: str) -> None:
    """Say what is about to take seconds; nobody who reads it is no reason to end it."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        _discard_output()


def _end_with(line: str) -> None:
    print(f"error: {UserError(line)}", file=sys.stderr)
    raise SystemExit(2) from None


def _discard_output() -> None:
    """Let the flush at exit succeed, though what standard output wrote to is gone or full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
