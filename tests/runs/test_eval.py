"""`eval.py`: equal to what training logged; other texts, folders, loggers, parts and questions."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_lm import load_checkpoint
from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import RECORD
from mla_lm.commands import export
from mla_lm.config import EvalConfig
from mla_lm.config.compose import compose, validate
from mla_lm.data import prepare
from mla_lm.data.batch import Annotator
from mla_lm.data.corpora import open_corpus
from mla_lm.data.loader import EvalLoader
from mla_lm.data.split import hash_position
from mla_lm.evaluation import evaluate
from mla_lm.evaluation.subject import load_subject
from tests.conftest import one_line
from tests.processes import command, environment, run
from tests.runs.conftest import STEPS, Run, checkpoint, content, logged, write_corpus

NAMES = {
    "val/loss",
    "val/perplexity",
    "val/bpb",
    "mtp/acceptance_1",
    "moe/max_violation",
    "moe/load_entropy",
    "moe/dead_experts",
}


@pytest.fixture(scope="module")
def evaluated(trained: Run) -> tuple[dict[str, Any], str]:
    """`metrics.json` and the console of `eval.py` on the run."""
    words = (f"ckpt={trained.folder}", "precision=32-true")
    result = run("eval.py", *words, cwd=trained.folder)
    assert result.returncode == 0, result.stderr
    return json.loads((trained.folder / "metrics.json").read_text()), result.stdout


def evaluate_here(*overrides: str) -> None:
    """`python eval.py OVERRIDES` without the process."""
    import eval as application

    given = ["precision=32-true", *overrides]
    own = [o for o in given if not o.startswith((*application.DATA, *application.LOGGER))]
    application.evaluate(validate(EvalConfig, compose("eval", own)), given)


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


@pytest.fixture
def own(trained: Run, tmp_path: Path) -> Path:
    """A copy of the run without results."""
    folder = shutil.copytree(trained.folder, tmp_path / "own")
    (folder / "metrics.json").unlink(missing_ok=True)
    return folder


def test_metrics_are_shown_and_those_that_training_logged(
    evaluated: tuple[dict[str, Any], str], trained: Run
) -> None:
    metrics, stdout = evaluated
    last = [row for row in logged(trained.folder) if "val/bpb" in row][-1]
    for name in ("val/loss", "val/bpb", "val/perplexity"):
        assert metrics[name] == pytest.approx(float(last[name]), rel=1e-5)
    for name in NAMES:
        assert math.isfinite(metrics[name])
        assert any(name in line and f"{metrics[name]:.4f}" in line for line in stdout.splitlines())

    _, cfg, _ = load_checkpoint(trained.folder)
    n_targets = len(prepare(cfg.data).val) - 1
    n_rows = math.ceil(n_targets / cfg.data.seq_len)
    load = torch.tensor(metrics["moe/load"])  # counts every choice
    assert load.shape == (2, 4)
    assert load.sum(dim=1).tolist() == [2 * n_targets, 2 * (n_targets - n_rows)]


def test_a_longer_context_has_metrics_of_its_own_with_and_without_yarn(
    evaluated: tuple[dict[str, Any], str], trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("parts=[lm,long_context]", "context=512", "limit=1")
    evaluate_here(f"ckpt={trained.folder}", *words)
    assert metrics_of(trained.folder) == evaluated[0]
    longer = json.loads((trained.folder / "metrics-context-512.json").read_text())
    assert longer["seq_len"] == 512
    assert math.isfinite(longer["val/loss"])
    assert longer["val/loss"] != evaluated[0]["val/loss"]
    shown = capsys.readouterr().out
    for prefix in ("", "without_yarn/"):
        for name in ("passkey/512", "recall/512", "passkey/128/greedy"):
            assert 0 <= longer[prefix + name] <= 1
            assert f"│ {prefix}{name} " in shown
        assert {len(shares) for shares in longer[f"{prefix}passkey/by_depth"].values()} == {5}
    assert (trained.folder / "passkey-512.png").stat().st_size > 1000
    assert len(longer["val/sha256"]) == 64


def test_limit_takes_that_many_batches(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, cfg, tokenizer = load_checkpoint(own)
    batches = list(EvalLoader(prepare(cfg.data).val, seq_len=32, batch_size=2))
    evaluate_here(f"ckpt={own}", "limit=1", "batch_size=2")
    assert f"1 of {len(batches)} batches" in capsys.readouterr().out
    byte_lengths = torch.from_numpy(tokenizer.byte_lengths)
    first = evaluate(model, batches[:1], byte_lengths, Annotator(cfg.data, tokenizer)).metrics
    assert metrics_of(own)["val/bpb"] == pytest.approx(first["val/bpb"], rel=1e-5)


def test_results_are_saved_though_nobody_reads_them(own: Path) -> None:
    """As `eval.py ... | head -1` does; a picture that cannot be written is a warning."""
    (own / "loss_by_position.png").unlink(missing_ok=True)
    (own / "loss_by_position.png").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = subprocess.run(
            command("eval.py", f"ckpt={own}", "precision=32-true"),
            cwd=own,
            env=environment(PYTHONUNBUFFERED="1"),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 0
    assert metrics_of(own)["val/loss"] > 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: picture: ")
    assert f"{own / 'loss_by_position.png'}" in line


def test_a_file_that_cannot_be_written_is_known_before_anything_is_measured(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mla_lm.evaluation.language_model.evaluate", pytest.fail)
    (own / "metrics.json").mkdir()
    line = f"{own / 'metrics.json'}: a folder of that name exists"
    assert one_line(lambda: evaluate_here(f"ckpt={own}")) == line


def test_results_of_unknown_weights_are_not_kept(own: Path) -> None:
    (own / "metrics.json").write_text('{"val/loss": 0.5}')
    evaluate_here(f"ckpt={own}", "parts=[profile]")
    assert "val/loss" not in metrics_of(own)


def test_a_checkpoint_is_read_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = [], checkpoint_file.read
    monkeypatch.setattr(checkpoint_file, "read", lambda *of: reads.append(of) or read(*of))
    load_subject(validate(EvalConfig, compose("eval", [f"ckpt={own}"])))
    assert [path for path, *_ in reads] == [checkpoint(own, STEPS)]


def test_a_validation_split_that_has_changed_is_refused(trained: Run, tmp_path: Path) -> None:
    cache = shutil.copytree(trained.folder.parent / "cache", tmp_path / "cache")
    (shard,) = cache.glob("*/val-*.bin")
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    path = checkpoint(trained.folder, STEPS)
    said = one_line(lambda: evaluate_here(f"ckpt={path}", f"data.cache_dir={cache}"))
    assert said.startswith(f"{shard}: its bytes have changed")


@pytest.mark.parametrize("held_out", [False, True], ids=["training text", "held-out text"])
def test_changed_corpus_is_refused(trained: Run, tmp_path: Path, held_out: bool) -> None:
    moved = shutil.copytree(trained.folder.parent, tmp_path / "moved")
    path = checkpoint(moved / "run", STEPS)
    stored = content(path)
    stored[RECORD]["config"]["data"]["path"] = str(moved / "text")
    checkpoint_file.write(path, stored)
    evaluate_here(f"ckpt={path}")

    _, cfg, _ = load_checkpoint(path)
    threshold = prepare(cfg.data).manifest["threshold"]
    keys = [document.key for document in open_corpus(cfg.data).train()]
    name = next(key.decode() for key in keys if (hash_position(key) < threshold) == held_out)
    changed = moved / "text" / name
    changed.write_text(changed.read_text() + "def changed(): pass\n" * 9)
    (moved / "run" / "metrics.json").unlink()
    assert "corpus" in one_line(lambda: evaluate_here(f"ckpt={path}"))
    assert not (moved / "run" / "metrics.json").exists()


def test_question_files_are_scored_and_kept_beside_other_results(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = ["\n    return x", "@@@@@ @@@ @@"]
    lines = [{"query": f"def f{i}(x):", "choices": choices, "gold": 0} for i in range(8)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [f"ckpt={own}", f"tasks_dir={tmp_path}", "question_files.arc_easy.path=mine.jsonl"]
    evaluate_here(f"ckpt={own}")
    loss = metrics_of(own)["val/loss"]
    evaluate_here(*words, "parts=[]", f"tasks=[arc_easy,{tmp_path / 'mine.jsonl'}]")
    metrics = metrics_of(own)
    assert metrics["val/loss"] == loss
    assert "task/arc_easy/acc" in capsys.readouterr().out
    for name in ("arc_easy", "mine"):
        assert metrics[f"task/{name}/acc"] == 1.0
        assert (metrics[f"task/{name}/chance"], metrics[f"task/{name}/n_items"]) == (0.5, 8)
    evaluate_here(*words, "parts=[]", "tasks=[arc_easy]", "limit=3")  # other conditions
    assert metrics_of(own)["task/arc_easy/n_items"] == 3
    assert "val/loss" not in metrics_of(own)


def test_another_text_has_its_own_loss(own: Path, tmp_path: Path) -> None:
    """And leaves nothing of the old one, such as its separate validation file."""
    evaluate_here(f"ckpt={own}")
    before = metrics_of(own)
    path = checkpoint(own, STEPS)
    stored = content(path)
    stored[RECORD]["config"]["data"]["val_path"] = str(tmp_path / "old")
    checkpoint_file.write(path, stored)
    other = write_corpus(tmp_path / "other", n_documents=6)
    for document in other.iterdir():
        document.write_text(document.read_text().replace("return", "yield"))
    evaluate_here(f"ckpt={own}", "data=text", f"data.path={other}")
    after = metrics_of(own)
    assert after["val/loss"] != before["val/loss"]
    assert after["data"] == ["data=text", f"data.path={other}"]
    assert after["sha256"] == checkpoint_file.digest_of(path)
    export.run([f"ckpt={own}", f"out={tmp_path / 'out'}"])
    assert "Not evaluated." in (tmp_path / "out" / "README.md").read_text()


def test_all_parts_at_once(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_here(f"ckpt={own}", "parts=[lm,speculation,code,profile]", "stride=8")
    metrics, shown = metrics_of(own), capsys.readouterr().out
    for name in ("sliding/loss", "mtp/tokens_per_forward", "code/parsed", "cache/bytes_per_token"):
        assert name in shown
        assert metrics[name] >= 0
    assert 0 < abs(metrics["sliding/loss"] - metrics["val/loss"]) < 0.1
    ranges = metrics["val/loss_by_position"]
    assert [part[:2] for part in ranges] == [[1, 1], [2, 2], [3, 4], [5, 8], [9, 16], [17, 32]]
    assert (own / "loss_by_position.png").stat().st_size > 1000
    assert metrics["seed"] == 1


def test_loggers_are_told_the_same_names(own: Path) -> None:
    evaluate_here(f"ckpt={own}", "logger=csv", "limit=1")
    (row,) = logged(own, version=1)
    assert {name.split("/")[0] for name in row} == {"step", "limit=1"}
    evaluate_here(f"ckpt={own}", "logger=csv")
    metrics = metrics_of(own)
    (row,) = logged(own, version=2)
    assert int(row.pop("step")) == metrics["step"] == STEPS
    numbers = {name: v for name, v in metrics.items() if "/" in name and isinstance(v, int | float)}
    assert {name: float(value) for name, value in row.items()} == pytest.approx(numbers)


def test_a_logger_that_fails_leaves_the_results(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr("lightning.pytorch.loggers.CSVLogger.log_metrics", fail)
    said = one_line(lambda: evaluate_here(f"ckpt={own}", "logger=csv"))
    assert said.startswith("logger: CSVLogger: ")
    assert metrics_of(own)["val/loss"] > 0


def test_the_numbers_go_to_the_run_that_training_logged(own: Path) -> None:
    pytest.importorskip("wandb")
    words = (f"ckpt={own}", "logger=wandb", "precision=32-true")
    result = run("eval.py", *words, cwd=own, WANDB_MODE="offline", WANDB_SILENT="true")
    assert result.returncode == 0, result.stderr
    run_id = json.loads((own / "config.json").read_text())["run_id"]
    (file,) = own.rglob("run-*.wandb")
    assert file.name == f"run-{run_id}.wandb"
    metrics, content = metrics_of(own), file.read_bytes()  # protobufs, whose texts are plain
    assert b"trainer/global_step" in content
    for name in ("val/loss", "val/bpb", "moe/max_violation"):
        assert name.encode() in content
        assert str(metrics[name]).encode() in content


def test_an_exported_folder_is_scored_as_the_run(trained: Run, own: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    export.run([f"ckpt={own}", f"out={theirs}"])
    words = [w for w in trained.overrides if w.startswith("data") and "tokenizer" not in w]
    evaluate_here(f"ckpt={theirs}", *words)
    evaluate_here(f"ckpt={own}")
    found, wanted = metrics_of(theirs), metrics_of(own)
    for key in ("val/loss", "val/bpb", "mtp/acceptance_1", "moe/max_violation"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-6)
    (theirs / "config.json").write_text((theirs / "config.json").read_text() + "\n")
    evaluate_here(f"ckpt={theirs}", "parts=[profile]")
    assert metrics_of(theirs)["sha256"] != found["sha256"]  # of the whole folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks=[none.jsonl]"], "none.jsonl: cannot be read"),
        (["tasks=[blimp]"], "data/eval/blimp.jsonl.gz: cannot be read"),
        (["parts=[]"], "nothing to do: name parts or tasks"),
        (["tasks=[x]", "tasks_include=none"], "tasks_include=none: no such file or folder"),
        (["parts=[lm,speed]"], "parts"),
        (["parts=[profile]", "stride=8"], "belongs to part lm"),
        (["parts=[long_context]", "context=2"], "parts=long_context: 2 tokens hold no question"),
        (["data/tokenizer=bytes"], "data/tokenizer=bytes: the tokenizer is that of ckpt="),
        (["data=stdlib", "data.pth=x"], "data.pth: unknown key"),
    ],
)
def test_what_cannot_be_done_is_one_line(words: list[str], said: str, own: Path) -> None:
    assert said in one_line(lambda: evaluate_here(f"ckpt={own}", *words))
    assert not (own / "metrics.json").exists()
