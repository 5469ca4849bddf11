"""How long it takes to come to where nanoGPT's recipe for a CPU ends, on one small text.

That recipe: 4 layers, 4 heads, width 128, 12 rows of 64 characters a step, 2,000 steps in float32.
Ours is `experiment=small_text`, for a third and for a sixth of its time. Both hold out the same
pieces of the text; validation and preparation are not counted.
"""

import math
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mla_lm.bench import baseline
from mla_lm.bench.quality import step_seconds, trained, validation
from mla_lm.bench.report import Row, timed
from mla_lm.config.compose import load_config
from mla_lm.data import TrainLoader, prepare

STEPS, WARM_UP, LR, LAST_LR = 2000, 100, 1e-3, 1e-4
SHAPE = {"seq_len": 64, "dim": 128, "n_layers": 4, "n_heads": 4}
BATCH = 12
SHARES = {"a third": 1 / 3, "a sixth": 1 / 6}


def run(text: Path) -> list[Row]:
    """Bits per byte of the recipe and how long it took, and what ours has after parts of that."""
    theirs, seconds = nanogpt(text)
    rows = [
        Row("nanoGPT's recipe: training", seconds, "s"),
        Row("nanoGPT's recipe: validation", theirs, "bits/byte"),
    ]
    words = (f"data.path={text}", "experiment=small_text")
    a_step = step_seconds(load_config(words))
    for name, share in SHARES.items():
        n_steps = max(1, round(share * seconds / a_step))
        with TemporaryDirectory() as folder:
            own, own_seconds = trained(Path(folder) / "run", n_steps, *words)
        rows.append(Row(f"ours, {name} of its time: training", own_seconds, "s"))
        goal = f"<= {theirs:.3f}"
        rows.append(Row(f"ours, {name} of its time: validation", own, "bits/byte", goal=goal))
    return rows


def nanogpt(text: Path) -> tuple[float, float]:
    """Bits per byte at the end of the recipe, and the seconds of its steps."""
    words = ("data=text", f"data.path={text}", "data.val_fraction=0.1", "data/tokenizer=bytes")
    cfg = load_config(words)
    data = prepare(cfg.data)
    torch.manual_seed(cfg.seed)
    model = baseline.DenseModel(baseline.Shape(data.tokenizer.vocab_size, **SHAPE))
    optimizer = baseline.optimizer(model, LR, betas=(0.9, 0.99))
    loader = TrainLoader(
        data.train, seq_len=SHAPE["seq_len"], batch_size=BATCH, accumulate=1, seed=cfg.seed
    )
    step, seconds = 0, 0.0
    while step < STEPS:
        for tokens in loader:
            act = partial(baseline.step, model, optimizer, tokens, rate(step), "32-true")
            seconds += timed(act)
            step += 1
            if step == STEPS:
                break
    return validation(model, data, SHAPE["seq_len"], "32-true"), seconds


def rate(step: int) -> float:
    """The learning rate of the recipe."""
    if step < WARM_UP:
        return LR * (step + 1) / WARM_UP
    falling = (step - WARM_UP) / (STEPS - WARM_UP)
    return LAST_LR + 0.5 * (1 + math.cos(math.pi * falling)) * (LR - LAST_LR)
