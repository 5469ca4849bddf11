"""`data/prepare.py`: what was prepared, a path that is none, and its help."""

import json
from pathlib import Path

from tests.data.conftest import write_folder
from tests.processes import ROOT, run

PREPARE = str(ROOT / "data" / "prepare.py")


def test_the_command_prints_what_was_prepared(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "text")
    words = ["model=nano", "data=text", f"data.path={path}", "data.tokenizer.vocab_size=300"]
    done = run(PREPARE, *words, f"data.cache_dir={tmp_path / 'cache'}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (p for p in (tmp_path / "cache").iterdir() if p.is_dir())
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in ("train", "val"):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{split} "))
        assert f"{manifest[split]['documents']:,} documents" in line
        assert f"{manifest[split]['tokens']:,} tokens" in line
    assert done.stdout.endswith(f"in {folder}\n")


def test_the_command_names_a_bad_path(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    done = run(PREPARE, "data=text", f"data.path={path}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: data.path={path}: no such file")
    assert done.stderr.count("\n") == 1


def test_the_command_explains_itself(tmp_path: Path) -> None:
    done = run(PREPARE, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "data.path=" in done.stdout
