"""Suite `quality`: bits per byte on held-out text after equal time, against nanoGPT's recipes.

The peer is `transformers`' GPT-2 with AdamW, on the same corpus and split: for some minutes on the
embedded corpus, or, with `text=`, by nanoGPT's recipe (2,000 steps) on a small text, against
`experiment=small_text` in a third and a sixth of that time. Only training steps are timed.
"""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from mla_lm.bench import steps
from mla_lm.bench.report import Row, row, timed
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config
from mla_lm.data import PreparedData, prepare
from mla_lm.data.loader import EvalLoader, TrainLoader
from mla_lm.machine import autocast, resolve_precision
from mla_lm.objective.metrics import loss_sums, summarize
from mla_lm.objective.optimizer import build_optimizer
from mla_lm.objective.schedules import lr_multiplier

FIVE_MINUTES = (  # the recipe without its budget: here validations do not count
    "experiment=five_minutes",
    "trainer.max_minutes=null",
    "trainer.min_steps=null",
    "trainer.fallbacks=[]",
)
TIMED = ("optim=adamw", "data.batch_size=8")
TIMED_SHAPE = {"n_embd": 256, "n_layer": 6, "n_head": 4}
CPU_SHAPE = {"n_embd": 128, "n_layer": 4, "n_head": 4}
CPU_RECIPE = (
    "data=text",
    "data.val_fraction=0.1",
    "data/tokenizer=bytes",
    "data.seq_len=64",
    "data.batch_size=12",
    "precision=32-true",
    "optim=adamw",
    "optim.lr=1e-3",
    "optim.betas=[0.9,0.99]",
    "optim.schedule=cosine",
    "optim.min_lr_ratio=0.1",
)
N_STEPS = 2000  # of the CPU recipe
SHARES = {"a third": 1 / 3, "a sixth": 1 / 6}
PROBED = 12  # steps that are timed to know how many fit
TICKS = 10_000  # resolution of a schedule over time


def run(minutes: float, text: str | None) -> list[Row]:
    """Bits per byte, time and tokens of both sides."""
    if text is None:
        ours = train_ours(FIVE_MINUTES, 60 * minutes)
        theirs = train_peer(load_config(TIMED), TIMED_SHAPE, seconds=60 * minutes)
        return [*figures("five_minutes", *ours), *figures("GPT-2", *theirs)]
    of_text = f"data.path={text}"
    bpb, seconds, n_tokens = train_peer(
        load_config([*CPU_RECIPE, of_text]), CPU_SHAPE, n_steps=N_STEPS
    )
    rows = figures("nanoGPT's CPU recipe", bpb, seconds, n_tokens)
    for name, share in SHARES.items():
        ours = train_ours(("experiment=small_text", of_text), share * seconds)
        rows += figures(f"ours, {name} of its time", *ours)
    return rows


def figures(name: str, bpb: float, seconds: float, n_tokens: int) -> list[Row]:
    """Rows of one training."""
    return [
        row(f"{name}: training", [seconds / 60], "min"),
        row(f"{name}: tokens", [n_tokens / 1e6], "M"),
        row(f"{name}: validation", [bpb], "bits/byte"),
    ]


def train_ours(overrides: Sequence[str], seconds: float) -> tuple[float, float, int]:
    """Bits per byte, seconds and tokens of a run of as many steps as fit into the time."""
    import pandas

    from mla_lm.training.run import fit

    cfg = load_config(overrides)
    step = partial(steps.ours(cfg).step, steps.batch(cfg), resolve_precision(cfg.precision, "cpu"))
    n_steps = max(1, round(seconds / statistics.median(timed(step) for _ in range(PROBED))))
    with TemporaryDirectory() as folder:
        limits = [f"trainer.{key}={n_steps}" for key in ("max_steps", "val_every_n_steps")]
        limits.append(f"trainer.log_every_n_steps={min(10, n_steps)}")
        own = [*overrides, *limits, f"run_dir={folder}/run", "callbacks.samples=null"]
        fit(load_config(own))
        metrics = pandas.read_csv(f"{folder}/run/metrics/version_0/metrics.csv")
    n_tokens = n_steps * cfg.data.batch_size * cfg.data.seq_len
    per_token = (1 / metrics["train/tokens_per_second"].dropna()).mean()
    return metrics["val/bpb"].dropna().iloc[-1], n_tokens * per_token, n_tokens


def train_peer(
    cfg: RunConfig, shape: dict[str, int], *, seconds: float = math.inf, n_steps: float = math.inf
) -> tuple[float, float, int]:
    """GPT-2 on the corpus, optimizer and schedule of `cfg`, for a time or for some steps."""
    data, precision = prepare(cfg.data), resolve_precision(cfg.precision, "cpu")
    torch.manual_seed(cfg.seed)
    model = gpt2(shape, data.tokenizer.vocab_size, cfg.data.seq_len)
    side = steps.of_logits(model, lambda t: model(t).logits, build_optimizer(model, cfg.optim))
    sizes = {"seq_len": cfg.data.seq_len, "batch_size": cfg.data.batch_size}
    loader = TrainLoader(data.train, **sizes, accumulate=1, seed=cfg.seed)
    spent, n_tokens = 0.0, 0
    for step, tokens in enumerate(chain.from_iterable(repeat(loader))):
        done = max(step / n_steps, spent / seconds)
        if done >= 1:
            break
        multiplier = lr_multiplier(round(TICKS * done), cfg=cfg.optim, max_steps=TICKS)
        for group in side.optimizer.param_groups:
            group["lr"] = cfg.optim.lr * multiplier
        spent += timed(partial(side.step, tokens, precision))
        n_tokens += tokens[:, 1:].numel()
    return validated(side.model, data, cfg), spent, n_tokens


def gpt2(shape: dict[str, int], vocab_size: int, seq_len: int) -> nn.Module:
    """`transformers`' GPT-2 without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings: dict[str, Any] = {"vocab_size": vocab_size, "n_positions": seq_len, **shape}
    settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    settings |= {"bos_token_id": None, "eos_token_id": None, "use_cache": False}
    return GPT2LMHeadModel(GPT2Config(**settings))


@torch.no_grad()
def validated(model: nn.Module, data: PreparedData, cfg: RunConfig) -> float:
    """Bits per byte of a model of logits on the whole validation split."""
    byte_lengths = torch.from_numpy(data.tokenizer.byte_lengths)
    batches = EvalLoader(data.val, seq_len=cfg.data.seq_len, batch_size=cfg.data.batch_size)
    with autocast(resolve_precision(cfg.precision, "cpu"), "cpu"):
        sums = [loss_sums(model(b[:, :-1]).logits, b[:, 1:], byte_lengths) for b in batches]
    return summarize(torch.cat(sums).sum(0), graded=False)["val/bpb"]
