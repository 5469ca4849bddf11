"""Lightning's own `ModelCheckpoint` works as users know it, on the same verified files."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.errors import UserError
from mla_lm.training.module import LanguageModel
from mla_lm.training.strategy import CheckpointFiles
from tests.reliability.runs import differences
from tests.runs.conftest import checkpoint, content, short_run, train_here, write_corpus
from tests.training.small import RECORD, TOKENIZER, Case, fit, micro_batches, trainer

MINE = "callbacks.mine"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def users(folder: Path, **options: object) -> list[str]:
    """Overrides that add a `ModelCheckpoint` to a run."""
    target = "lightning.pytorch.callbacks.ModelCheckpoint"
    keys = {"_target_": target, "dirpath": folder, **options}
    quoted = {k: f"'{v}'" if isinstance(v, str) else v for k, v in keys.items()}
    return [f"+{MINE}.{key}={value}" for key, value in quoted.items()]


def best(stored: dict[str, Any]) -> list[float | None]:
    """What the users' callback knows of the best score; its paths are those of two folders."""
    states = [s for n, s in stored["callbacks"].items() if n.startswith("ModelCheckpoint")]
    scores = [state["best_model_score"] for state in states]
    return [score if score is None else float(score) for score in scores]


@pytest.mark.parametrize("options", [{"every_n_train_steps": 7}, {"monitor": "val/loss"}])
def test_what_a_users_callback_saved_resumes_bit_for_bit(
    tmp_path: Path, options: dict[str, object]
) -> None:
    write_corpus(tmp_path / "text")
    names = {"filename": "{step}", "auto_insert_metric_name": False, "save_top_k": -1}
    more = {**names, **options}
    words = [*short_run(tmp_path), *users(tmp_path / "mine", **more)]
    train_here(*words, f"run_dir={tmp_path / 'whole'}")
    first = min((tmp_path / "mine").iterdir(), key=lambda path: content(path)["global_step"])
    assert content(first)["global_step"] == (7 if "every_n_train_steps" in options else 4)
    train_here(*words, f"resume={first}", f"run_dir={tmp_path / 'resumed'}")
    whole, resumed = (content(checkpoint(tmp_path / d, 12)) for d in ("whole", "resumed"))
    assert best(resumed) == best(whole)
    if "monitor" in options:
        assert best(whole)[0] is not None
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
    assert differences({k: resumed[k] for k in keys}, {k: whole[k] for k in keys}) == []


def test_the_midst_of_a_window_is_refused(tmp_path: Path) -> None:
    class Always(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            trainer.save_checkpoint(tmp_path / "x.ckpt")

    case, options = Case(), {"enable_checkpointing": True, "plugins": [CheckpointFiles()]}
    module = LanguageModel(case.config(), TOKENIZER, RECORD)
    by_lightning = trainer(2, Always(), accumulate_grad_batches=2, **options)
    with pytest.raises(UserError, match="between optimizer steps"):
        fit(by_lightning, module, micro_batches(case))
    assert not any(tmp_path.iterdir())


def test_only_checkpoints_are_removed(tmp_path: Path) -> None:
    """A forged file may say which paths `ModelCheckpoint` has saved, and it deletes old ones."""
    mine, files = tmp_path / "mine.txt", CheckpointFiles()
    mine.write_text("mine")
    files.remove_checkpoint(mine)
    assert mine.exists()
    checkpoint_file.write(tmp_path / "x.ckpt", {})
    for _ in range(2):  # the second time as when a run was killed behind the first
        files.remove_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()
