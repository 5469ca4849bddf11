"""The one error a user meets, a single line that says what to mend, and the exit codes.

What is only for people, output and pictures, ends no work: its failures are warnings.
"""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

STOPPED, INTERRUPTED, UNREAD = 143, 130, 141  # exit codes: 128 + SIGTERM, SIGINT, SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a file


class UserError(ValueError):
    """Names the key or file, the value, the rule and what to do; ends a command with status 2."""

    def __init__(self, line: str) -> None:
        super().__init__(" ".join(line.splitlines()))


def one_line(error: BaseException) -> str:
    """What a library raised, short enough for the line of a `UserError`."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def guard(action: Callable[[], None]) -> None:
    """Run `action`; turn a UserError or an unusable file into one line and status 2.

    What a terminal or pipe cannot show is printed as `?`: it is no reason to lose a run. When
    nobody reads the output any more, as behind `| head`, it ends without a message.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error never fails
        sys.stdout.reconfigure(errors="replace")
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
    out, err = (stream and _Output(stream, unread) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


class _Output:
    def __init__(self, stream: Any, unread: Callable[[], None]) -> None:
        self.stream, self.unread = stream, unread

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            _discard(self.stream)
            if isinstance(error, BrokenPipeError):
                self.unread()
            else:
                print(f"warning: output cannot be written ({error.strerror})", file=sys.stderr)


def _end_with(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2) from None


def _discard(stream: Any) -> None:
    """Let the flush at exit succeed, though what the stream wrote to is gone or full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
