"""`make` names the Python it needs before pip speaks, and makes an unfit `.venv` anew."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

FAKE = """#!/bin/sh
case "$*" in
*"-m venv"*) for last; do :; done
  mkdir -p $last/bin; cp {path} $last/bin/python; echo "version = {version}" > $last/pyvenv.cfg;;
"-c "*) exec {python} -c "import sys
class V(tuple): pass
sys.version_info = V(map(int, '{version}'.split('.')))
exec(sys.argv[1])" "$2";;
*) echo "{version} runs $*";;
esac
"""


def interpreter(folder: Path, name: str, version: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(FAKE.format(path=path, version=version, python=sys.executable))
    path.chmod(0o755)


def make(folder: Path, *words: str) -> tuple[bool, str]:
    result = subprocess.run(
        ["make", "train", *words],
        cwd=folder,
        env={"PATH": f"{folder / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    return result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_the_version_is_checked_and_another_one_s_environment_made_anew(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    interpreter(tmp_path, "python3", "3.10")
    interpreter(tmp_path, "python3.12", "3.12")
    done, said = make(tmp_path)
    assert "mla_lm needs Python 3.11 or newer and python3 is 3.10" in said
    assert (done, "pip" in said, (tmp_path / ".venv").exists()) == (False, False, False)

    done, said = make(tmp_path, "PYTHON=python3.12")
    assert done
    assert "3.12 runs -m pip" in said
    done, said = make(tmp_path)  # it is used, whatever python3 is
    assert done
    assert "pip" not in said

    interpreter(tmp_path, "python3", "3.11")
    assert "pip" not in make(tmp_path)[1]
    for spoil in ("bin/python", "pyvenv.cfg"):  # gone; of an older Python, before an upgrade
        (tmp_path / ".venv" / spoil).unlink()
        (tmp_path / ".venv/pyvenv.cfg").write_text("version = 3.10.4")
        assert "3.11 runs -m pip" in make(tmp_path)[1]
    assert "3.12 runs -m pip" in make(tmp_path, "PYTHON=python3.12")[1]
