"""Suite `evaluation`: questions a second against the `hf` model of lm-evaluation-harness."""

import itertools
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mla_lm.bench.report import Row, fastest, interleaved, median_row, timed
from mla_lm.checkpoint.record import load_checkpoint, locate
from mla_lm.evaluation.items import Pair, all_pairs, read_items
from mla_lm.evaluation.scoring import encode, score
from mla_lm.interop.export import export
from mla_lm.machine import accelerator_type, autocast, resolve_precision

ROUNDS = 3
N_TRIED = 500  # to find the peer's best way
BATCHES = (16, 64, 256)
NUMBERS = ("float32", "bfloat16")
EXPERTS = ("eager", "grouped_mm")


def run(ckpt: str, path: str) -> list[Row]:
    """The items of a JSONL file by the model of a checkpoint, tokenization included."""
    items = read_items(Path(path))
    pairs, sizes = all_pairs(items, " ")
    model, _, tokenizer = load_checkpoint(ckpt)
    device = accelerator_type()
    model = model.to(device)
    precision = resolve_precision("auto", device)

    def ours(pairs: Sequence[Pair] = pairs) -> list[float]:
        asked = encode(pairs, tokenizer, max_seq_len=model.cfg.max_seq_len).requests
        return [one.log_likelihood for one in score(model, asked)]

    def mixed() -> list[float]:
        with autocast(precision, device):
            return ours()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "exported"
        whole = {"dtype": torch.float32, "max_shard_bytes": 10**10, "licence": "unknown"}
        export(locate(ckpt), folder, **whole)  # type: ignore[arg-type]
        tried = pairs[: N_TRIED * sizes[0]]
        ways = {
            (number, experts, batch): Harness(folder, number, experts, batch, device)
            for number, experts, batch in itertools.product(NUMBERS, EXPERTS, BATCHES)
        }
        _require_equal(ours(tried), ways["float32", "eager", BATCHES[0]].score(tried))
        timers = {
            " ".join(map(str, way)): lambda peer=peer: timed(lambda: peer.score(tried))
            for way, peer in ways.items()
        }
        best = fastest(timers)
        peer = dict(zip(timers, ways.values(), strict=True))[best]
        seconds = interleaved(
            [lambda: timed(mixed), lambda: timed(lambda: peer.score(pairs))], rounds=ROUNDS
        )
    own, theirs = ([len(items) / s for s in column] for column in seconds)
    ratios = [a / b for a, b in zip(own, theirs, strict=True)]
    return [
        Row("questions", len(items), ""),
        median_row(f"ours, {precision}", own, "questions/s"),
        median_row(f"lm-evaluation-harness hf, {best}", theirs, "questions/s"),
        median_row("ratio", ratios, "", goal=">= 3"),
    ]


class Harness:
    """The peer in one number format, way to run experts, and batch size."""

    def __init__(self, folder: Path, number: str, experts: str, batch: int, device: str) -> None:
        from lm_eval.models.huggingface import HFLM

        logging.disable(logging.WARNING)
        self.model = HFLM(
            pretrained=str(folder),
            dtype=number,
            batch_size=batch,
            device=device,
            experts_implementation=experts,
        )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Log-likelihoods, as `score` gives them."""
        from lm_eval.api.instance import Instance

        asked: list[Any] = [
            Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(pairs)
        ]
        found = self.model.loglikelihood(asked, disable_tqdm=True)
        return [float(value) for value, _ in found]


def _require_equal(ours: Sequence[float], theirs: Sequence[float]) -> None:
    torch.testing.assert_close(
        torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-3, msg="other likelihoods"
    )
