"""`eval.py` on questions, other texts and Hugging Face folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import RECORD
from mla_lm.commands import export
from tests.processes import run
from tests.runs.conftest import STEPS, Run, copied, logged, refusal, write_corpus
from tests.runs.test_eval import evaluate_here
from tests.runs.wandb_file import wandb_rows


def metrics_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


@pytest.fixture
def own(trained: Run, tmp_path: Path) -> Path:
    """A copy of the run, its results aside."""
    folder = copied(trained.folder, tmp_path / "own")
    (folder / "metrics.json").unlink(missing_ok=True)
    return folder


def write_bundle(path: Path, n: int = 8) -> Path:
    lines = [
        {"query": f"def f{i}(x):", "choices": ["\n    return x", "@@@@@ @@@ @@"], "gold": 0}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_file_of_ones_own_is_scored(own: Path, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "mine.jsonl")
    evaluate_here(f"ckpt={own}", "parts=[]", f"tasks=[{path}]")
    metrics = metrics_of(own)
    assert metrics["task/mine/accuracy"] == 1.0
    assert (metrics["task/mine/chance"], metrics["task/mine/n_items"]) == (0.5, 8)
    assert "val/loss" not in metrics


def test_bundles_are_named_and_kept_beside_other_results(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(tmp_path / "arc_easy.jsonl.gz".removesuffix(".gz"))
    words = [f"ckpt={own}", f"tasks_dir={tmp_path}", "bundles.arc_easy.path=arc_easy.jsonl"]
    evaluate_here(f"ckpt={own}")
    loss = metrics_of(own)["val/loss"]
    evaluate_here(*words, "parts=[]", "tasks=[arc_easy]")
    metrics = metrics_of(own)
    assert metrics["val/loss"] == loss
    assert metrics["task/arc_easy/accuracy"] == 1.0
    assert "task/arc_easy/accuracy" in capsys.readouterr().out
    evaluate_here(*words, "parts=[]", "tasks=[arc_easy]", "limit=3")  # other conditions
    assert metrics_of(own)["task/arc_easy/n_items"] == 3
    assert "val/loss" not in metrics_of(own)


def test_another_text_has_its_own_loss(own: Path, tmp_path: Path) -> None:
    evaluate_here(f"ckpt={own}")
    before = metrics_of(own)
    other = write_corpus(tmp_path / "other", n_documents=4)
    for path in other.iterdir():
        path.write_text(path.read_text().replace("return", "yield"))
    evaluate_here(f"ckpt={own}", "data=text", f"data.path={other}")
    after = metrics_of(own)
    assert after["val/loss"] != before["val/loss"]
    assert after["data"] == ["data=text", f"data.path={other}"]
    assert after["sha256"] == before["sha256"] != ""
    export.run([f"ckpt={own}", f"out={tmp_path / 'out'}"])
    assert "Not evaluated." in (tmp_path / "out" / "README.md").read_text()


def test_two_files_of_one_name_are_refused(own: Path, tmp_path: Path) -> None:
    paths = [write_bundle(tmp_path / "x.jsonl"), own / "x.jsonl"]
    write_bundle(paths[1])
    said = refusal(lambda: evaluate_here(f"ckpt={own}", f"tasks=[{paths[0]},{paths[1]}]"))
    assert said == f"tasks={paths[1]}: another of them is called x"


def test_another_text_leaves_nothing_of_the_old_one(own: Path, tmp_path: Path) -> None:
    """Its separate validation file, for example."""
    path = max((own / "checkpoints").iterdir())
    stored = checkpoint_file.read(path)
    stored[RECORD]["overrides"] += [f"data.val_path={tmp_path / 'old'}"]
    checkpoint_file.write(path, stored)
    other = write_corpus(tmp_path / "other", n_documents=6)
    evaluate_here(f"ckpt={own}", "data=text", f"data.path={other}")
    assert metrics_of(own)["val/loss"] > 0


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


def test_keys_are_sought_with_and_without_yarn(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_here(f"ckpt={own}", "parts=[long_context]", "context=512", "limit=1")
    metrics = json.loads((own / "metrics-context-512.json").read_text())
    shown = capsys.readouterr().out
    for prefix in ("", "without_yarn/"):
        for name in ("passkey/512", "recall/512", "passkey/128/greedy"):
            assert 0 <= metrics[prefix + name] <= 1
            assert f"│ {prefix}{name} " in shown
        assert {len(shares) for shares in metrics[f"{prefix}passkey/by_depth"].values()} == {5}
    assert (own / "passkey-512.png").stat().st_size > 1000
    assert len(metrics["val/sha256"]) == 64


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
    said = refusal(lambda: evaluate_here(f"ckpt={own}", "logger=csv"))
    assert said.startswith("logger: CSVLogger: ")
    assert metrics_of(own)["val/loss"] > 0


def test_the_digest_is_of_the_whole_folder(own: Path, tmp_path: Path) -> None:
    export.run([f"ckpt={own}", f"out={tmp_path / 'theirs'}"])
    words = (f"ckpt={tmp_path / 'theirs'}", "parts=[profile]")
    evaluate_here(*words)
    before = metrics_of(tmp_path / "theirs")["sha256"]
    config = tmp_path / "theirs" / "config.json"
    config.write_text(config.read_text() + "\n")
    evaluate_here(*words)
    assert metrics_of(tmp_path / "theirs")["sha256"] != before


def test_the_numbers_go_to_the_run_that_training_logged(own: Path) -> None:
    pytest.importorskip("wandb")
    words = (f"ckpt={own}", "logger=wandb", "precision=32-true")
    result = run("eval.py", *words, cwd=own, WANDB_MODE="offline", WANDB_SILENT="true")
    assert result.returncode == 0, result.stderr
    run_id = json.loads((own / "config.json").read_text())["run_id"]
    (file,) = own.rglob("run-*.wandb")
    assert file.name == f"run-{run_id}.wandb"
    (row,) = wandb_rows(file)
    metrics = metrics_of(own)
    assert row["trainer/global_step"] == STEPS
    for name in ("val/loss", "val/bpb", "moe/max_violation"):
        assert row[name] == pytest.approx(metrics[name])


def test_an_exported_folder_is_scored_as_the_run(trained: Run, own: Path, tmp_path: Path) -> None:
    export.run([f"ckpt={own}", f"out={tmp_path / 'theirs'}"])
    words = [w for w in trained.overrides if w.startswith("data") and "tokenizer" not in w]
    result = run("eval.py", "ckpt=theirs", *words, "precision=32-true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    evaluate_here(f"ckpt={own}")
    found, wanted = metrics_of(tmp_path / "theirs"), metrics_of(own)
    for key in ("val/loss", "val/bpb", "mtp/acceptance_1", "moe/max_violation"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks=[lambda_openai]"], "tasks=('lambda_openai',): must be of arc_easy, blimp,"),
        (["tasks=[none.jsonl]"], "none.jsonl: cannot be read"),
        (["tasks=[/a/x.jsonl,/b/x.jsonl]"], "cannot be read"),
        (["parts=[]"], "nothing to do"),
        (["parts=[]", "harness=[x]", "harness_include=none"], "harness_include=none: no such"),
        (["parts=[lm,speed]"], "parts"),
        (["parts=[long_context]", "context=2"], "parts=long_context: 2 tokens hold no question"),
        (["data/tokenizer=bytes"], "data/tokenizer=bytes: the tokenizer is that of ckpt="),
        (["data=text", "data.pth=x"], "data.pth: unknown key"),
        (["parts=[]", "harness=[no_such_task]"], "harness=no_such_task: "),
    ],
)
def test_what_cannot_be_done_is_one_line(words: list[str], said: str, own: Path) -> None:
    assert said in refusal(lambda: evaluate_here(f"ckpt={own}", *words))
    assert not (own / "metrics.json").exists()
