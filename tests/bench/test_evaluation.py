"""The figures of suite `evaluation` come out of real work; how large they are is not tested."""

import json
from pathlib import Path

import pytest

from mla_lm.bench import evaluation
from mla_lm.commands import bench
from mla_lm.errors import UserError
from tests.conftest import tiny_config
from tests.interop.random_runs import checkpoint_of, trained

LINES = [{"sentence_good": f"it is {i} late", "sentence_bad": f"it are {i} late"} for i in range(9)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_every_figure_is_measured(tmp_path: Path) -> None:
    cfg = tiny_config("model.dim=32", "model.ffn.moe_inter_dim=32")  # as grouped_mm wants them
    path = checkpoint_of(cfg, trained(cfg), tmp_path)
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    rows = {row.name.split(",")[0]: row.value for row in evaluation.run(str(path), str(items))}
    assert rows["questions"] == 9
    ours, theirs = rows["ours"], rows["lm-evaluation-harness hf"]
    assert rows["ratio"] == pytest.approx(ours / theirs, rel=0.5)


def test_what_it_needs_is_said() -> None:
    with pytest.raises(UserError, match="needs ckpt=PATH and items=FILE"):
        bench.run(["suite=evaluation"])
