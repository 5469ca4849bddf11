"""A checkpoint from a stranger names no variable, reads no file and fetches nothing unasked."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_lm import load_checkpoint, load_config
from mla_lm.ablation.study import cells, load_study, plan
from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import RECORD, write_run_files
from mla_lm.checkpoint.resume import resolve_origin
from mla_lm.commands import ablate, export, generate, import_
from mla_lm.config.section import leaves, value_at
from mla_lm.errors import UserError
from tests.conftest import one_line
from tests.runs.conftest import STEPS, Run, checkpoint, content, train_here
from tests.runs.test_eval import evaluate_here

VARIABLE, VALUE = "${oc.env:MLA_LM_TEST}", "the value of a variable"
OTHER = "end_of_text"  # stands in the tokenizer as well


def forged(trained: Run, path: Path, values: dict[str, Any]) -> Path:
    """The last checkpoint with other values in its record, dotted keys of which are given."""
    stored = content(checkpoint(trained.folder, STEPS))
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (value_at(stored[RECORD], section) if section else stored[RECORD])[name] = value
        if name == OTHER:
            text = (
                stored[RECORD]["tokenizer"]
                .numpy()
                .tobytes()
                .replace(b"<|endoftext|>", VARIABLE.encode())
            )
            stored[RECORD]["tokenizer"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    checkpoint_file.write(path, stored)
    return path


def where_texts_fit(trained: Run, path: Path) -> list[str]:
    """Keys of a record that take VARIABLE; the line that refuses it elsewhere is printed."""
    tree = {
        k: v
        for k, v in content(checkpoint(trained.folder, STEPS))[RECORD].items()
        if k != "tokenizer"
    }
    fit = []
    for key, value in leaves(tree):
        if not isinstance(value, str | list | tuple | None):
            continue
        text = [VARIABLE] if isinstance(value, list | tuple) else VARIABLE
        try:
            load_checkpoint(forged(trained, path, {key: text}))
            fit.append(key)
        except UserError as error:
            print(error)
    return fit


def test_no_text_of_a_record_is_interpolated(
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By no command, in no file that it writes and no line that it prints."""
    monkeypatch.setenv("MLA_LM_TEST", VALUE)
    monkeypatch.chdir(tmp_path)
    keys = where_texts_fit(trained, tmp_path / "one.ckpt")
    assert {"command", "config.init_from", "config.data.path", "data.name"} < {*keys}
    path = forged(trained, tmp_path / "x.ckpt", dict.fromkeys(keys, VARIABLE))

    words = [f"resume={path}", "run_dir=resumed"]
    origin = resolve_origin(load_config(words), words)
    assert origin.record is not None
    write_run_files(tmp_path / "resumed", origin.cfg, origin.record)
    text = ("data=text", f"data.path={trained.folder.parent / 'text'}", "data.cache_dir=cache")
    short = (*text, "data.seq_len=32", *trained.overrides[8:13], "trainer.max_steps=1")
    commands: list[Callable[[], object]] = [
        partial(train_here, *words[:1], "run_dir=again"),
        partial(train_here, f"init_from={path}", "run_dir=new", *short),
        partial(evaluate_here, f"ckpt={path}"),
        partial(evaluate_here, f"ckpt={path}", *text, "logger=csv"),
        partial(generate.run, [f"ckpt={path}", "prompt=def ", "max_new_tokens=2"]),
        partial(export.run, [f"ckpt={path}", "out=exported"]),
        partial(import_.run, ["src=exported", "out=imported"]),
        partial(ablate.run, ["report=new"]),
    ]
    for command in commands:
        with suppress(UserError):
            command()
    for done in ("new/report.md", "metrics.json", "imported/config.json"):
        assert (tmp_path / done).exists()
    written = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert [file for file, found in written.items() if VALUE.encode() in found] == []
    assert VARIABLE.encode() in written[tmp_path / "resumed" / "config.json"]
    assert VALUE not in "".join(capsys.readouterr())


def test_nor_is_the_name_of_a_folder_or_the_id_of_a_cell(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLA_LM_TEST", VALUE)
    shutil.copytree(trained.folder, tmp_path / VARIABLE)
    (tmp_path / "link").symlink_to(tmp_path / VARIABLE)
    here = checkpoint(tmp_path / "link", STEPS)
    study = plan(load_study("smoke", {}, []))
    actions: list[Callable[[], object]] = [
        lambda: train_here(f"resume={here}", "trainer.max_steps=14"),
        lambda: evaluate_here(f"ckpt={here}", "logger=csv", "parts=[profile]"),
        lambda: study.cell_config(cells(study.study, {})[0], tmp_path, VARIABLE),
        lambda: train_here("run_dir='\\${oc.env:MLA_LM_TEST}'", *trained.overrides),
    ]
    for action in actions:
        assert "${" in (said := one_line(action))
        assert VALUE not in said


@pytest.mark.parametrize("kind", ["file", "hub"])
def test_what_a_record_names_is_not_read_unasked(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nor is the folder of its author's choice written to."""

    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("datasets.load_dataset", fetched)
    monkeypatch.chdir(tmp_path)
    private, theirs = tmp_path / "private.txt", tmp_path / "theirs"
    private.write_text("\n\n".join(f"day {day} of my diary " * 300 for day in range(9)))
    values: dict[str, Any] = {"config.data.cache_dir": str(theirs), "config.data.verify": "full"}
    values |= {"config.data.path": str(private), "data.settings.source.files": 1}
    if kind == "hub":
        data = load_config(["data=hub", "data.name=a/stranger", *trained.overrides[5:7]]).data
        kept = {"tokenizer": load_config(trained.overrides).data.tokenizer}
        stored = data.model_copy(update=kept).model_dump(mode="json")
        values = {"config.data": stored | {"cache_dir": str(theirs)}, "data.settings.source": {}}
    path = forged(trained, tmp_path / "x.ckpt", values)
    named = "data.name=a/stranger: named" if kind == "hub" else f"data.path={private}: named"
    for action in (
        lambda: evaluate_here(f"ckpt={path}"),
        lambda: evaluate_here(f"ckpt={path}", "data.seq_len=16"),
        lambda: train_here(f"resume={path}", "run_dir=run"),
    ):
        assert one_line(action).startswith(f"{named} by the checkpoint, and ")
    assert {found.name for found in tmp_path.iterdir()} == {"x.ckpt", "private.txt"}
    if kind == "file":  # by the word of the user
        evaluate_here(f"ckpt={path}", "data=text", f"data.path={private}")
        assert (tmp_path / "data" / "cache").exists()
        assert not theirs.exists()
