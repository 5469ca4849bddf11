"""Text of others cannot steer a terminal: printed, warned of, in errors, below a progress bar."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mla_lm.errors import UserError, guard, raw_output, visible
from mla_lm.evaluation.progress import Bar
from mla_lm.evaluation.results import metrics_table
from tests.processes import environment, read_terminal

HOSTILE = "a\x1b[8mb\rc\x9b1md\u202ee\x00f\x07"
SHOWN = r"a\x1b[8mb\rc\x9b1md\u202ee\x00f\x07"
INLINE = SHOWN.replace(r"\r", " ")


def say_everything() -> None:
    """What commands do with text of files."""
    print(HOSTILE)
    with Bar() as bar:
        for _ in bar.track(range(1)):
            print(HOSTILE)
            print(HOSTILE, "https://user:S3cret@host", file=sys.stderr)
    metrics_table({HOSTILE: 1.0, f"{HOSTILE}\nval/bpb": 1.0}, [])
    print("\r50%", file=sys.stderr)  # a bar of a library
    click.secho("styled by a library", fg="red", err=True)
    raise UserError(HOSTILE)


def test_a_terminal_shows_controls_as_escapes(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    code = "from tests.test_terminal import *; guard(say_everything)"
    streams = {"stdout": terminal, "stderr": terminal}
    environ = environment(TERM="xterm", COLUMNS="200")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environ, **streams)
    os.close(terminal)
    text = read_terminal(controller).replace("\r\n", "\n")
    assert process.wait() == 2
    assert text.count(SHOWN) == 3
    assert text.count(f"│ {INLINE} ") == 2
    assert f"error: {INLINE}\n" in text
    assert "\x1b[8m" not in text
    assert "S3cret" not in text
    assert not {"\x9b", "\u202e", "\0", "\a"} & set(text)
    assert "\n│ val/bpb" not in text
    assert "\x1b[?25h" in text  # rich's own: the cursor is shown again
    assert "\r50%" in text
    assert "\nstyled by a library\n" in text


def test_elsewhere_too_but_for_data_itself(capsys: pytest.CaptureFixture[str]) -> None:
    guard(lambda: print(HOSTILE))
    guard(lambda: print(HOSTILE, file=raw_output()))
    assert capsys.readouterr().out == f"{SHOWN}\n{HOSTILE}\n"


def test_text_stays_text() -> None:
    text = "naïve 終 🙂 👩‍👩‍👧 עברית\n\tx\\x1b"
    assert visible(text) == text
