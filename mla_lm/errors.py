"""What a user is told: the one error, a single line that says what to mend, and exit codes.

Whatever is printed passes `_Visible`, so that no text of a file can steer a terminal; no secret is
in an error, a warning or a traceback. What is only for people, output and pictures, ends no work:
its failures are warnings.
"""

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from mla_lm.config.secret import hidden

CONTROLS = re.compile(  # C0 but for tab and newline, C1, lines, direction, half characters
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]"
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

    def __init__(self, stream: TextIO, *, is_stderr: bool = False) -> None:
        self.rich_proxied_file, self.is_stderr = stream, is_stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def isatty(self) -> bool:
        """No: libraries then write no escape sequences of their own."""
        return False

    def write(self, text: str) -> int:
        bar = OF_BARS.match(text) if self.is_stderr else None
        steering = bar[0] if bar else ""
        rest = text[len(steering) :]
        self.rich_proxied_file.write(steering + visible(hidden(rest) if self.is_stderr else rest))
        return len(text)


def show_controls() -> None:
    """From now on standard output and error show what is printed `visible`."""
    sys.stdout = cast(TextIO, _Visible(sys.stdout))
    sys.stderr = cast(TextIO, _Visible(sys.stderr, is_stderr=True))


def raw_output() -> TextIO:
    """Standard output without that, for what steers a terminal on purpose or is not for one."""
    return _raw(sys.stdout)


def _raw(stream: Any) -> TextIO:
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
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: a file opened later would get its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error never fails
        sys.stdout.reconfigure(errors="replace")
    show_controls()
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        raise SystemExit(UNREAD) from None
    except UserError as error:
        _end_with(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        if error.filename is None:
            _discard(sys.stdout)
        _end_with(f"{error.filename or 'standard output'}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def warned(what: str) -> Iterator[None]:
    """Turn the failure of what is only for people into a warning."""
    try:
        yield
    except Exception as error:
        print(f"warning: {what}: {one_line(error)}", file=sys.stderr)


@contextmanager
def output_may_end(unread: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Drop what standard output and error no longer take; call `unread` when a pipe is closed."""
    before: Any = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Output(_raw(stream), unread) for stream in before)
    show_controls()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Output:
    def __init__(self, stream: Any, unread: Callable[[], None]) -> None:
        self.taken_by, self.unread = stream, unread

    def __getattr__(self, name: str) -> Any:
        return getattr(self.taken_by, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self.taken_by.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.taken_by.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            _discard(self.taken_by)
            if isinstance(error, BrokenPipeError):
                self.unread()
            else:
                print(f"warning: output cannot be written ({error.strerror})", file=sys.stderr)


def _end_with(line: str) -> None:
    print(f"error: {UserError(line)}", file=sys.stderr)
    raise SystemExit(2) from None


def _discard(stream: Any) -> None:
    """Let the flush at exit succeed, though what the stream wrote to is gone or full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
