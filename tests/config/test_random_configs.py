"""500 random configurations: whatever validation accepts takes a training step."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count, islice
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm import load_config
from mla_lm.config import RunConfig
from mla_lm.data.corpora.synthetic import FILLER
from mla_lm.errors import UserError
from mla_lm.machine import resolve_precision
from mla_lm.training.module import LanguageModel
from tests.training.small import RECORD, TOKENIZER, fit, trainer

N = 500
BOOL = ("true", "false")
GROUPED = {
    "model.sizes.head_dim": (6, 9, 16),
    "model.attention.rope_head_dim": (2, 6),
    "model.attention.qk_norm": BOOL,
}
CHOICES: dict[str, Any] = {  # key: its choices; a choice that is a mapping has keys of its own
    "model": ("nano",),
    "model.dim": (5, 8, 16, 24, 33),
    "model.n_heads": (1, 2, 4),
    "model.n_layers": (1, 2, 3),
    "model.n_dense_layers": (0, 1),
    "model.mtp_depth": (0, 1, 2),
    "model.inter_dim": (1, 8, 37),
    "model.vocab_size": (257, 290),
    "model.max_seq_len": (24, 30),
    "model.tie_embeddings": BOOL,
    "model.mtp_input": ("post_norm", "pre_norm"),
    "model.init_std": (0.001, 0.02, 0.5),
    "model/attention": {
        "mla": {
            "model.sizes.head_dim": (2, 9, 16),
            "model.sizes.kv_lora_rank": (1, 7, 24),
            "model.attention.q_lora_rank": ("null", 1, 13),
            "model.sizes.nope_head_dim": (1, 12),
            "model.sizes.rope_head_dim": (2, 10),
        },
        "mha": GROUPED,
        "gqa": GROUPED | {"model.sizes.n_kv_heads": (1, 2)},
        "mqa": GROUPED,
    },
    "model/rope": {
        "plain": {"model.rope.theta": (0.5, 1e4, 1e6)},
        "yarn": {
            "model.rope.theta": (10, 1e6),
            "model.rope.original_max_seq_len": (4, 40),
            "model.rope.factor": (8.0, 20.5),
            "model.rope.beta_slow": (0.1, 4),
            "model.rope.beta_fast": (4, 64),
            "model.rope.mscale": (0, 1, 2),
            "model.rope.mscale_all_dim": (0, 1, 2),
        },
    },
    "model/ffn": {
        "moe": {
            "model.sizes.moe_inter_dim": (7, 8, 16),
            "model.sizes.n_routed_experts": (2, 4, 8),
            "model.sizes.n_activated_experts": (1, 2, 4),
            "model.ffn.n_groups": {1: {}, 2: {"model.ffn.topk_groups": (1, 2)}},
            "model.ffn.n_shared_experts": (0, 1, 2),
            "model.ffn.route_scale": (0.1, 3.0),
            "model.ffn.norm_topk": BOOL,
            "model.ffn.execution": ("auto", "padded", "grouped_mm", "few_tokens", "loop"),
            "model.ffn.force_balance": BOOL,
            "balance": ("bias", "none", "sequence", "switch"),
            "balance.bias_decay_fraction": (0.0, 0.5, 1.0),
        },
        "dense": {"balance": ("none",)},
    },
    "data": {
        "stdlib": {"data/tokenizer": ("bpe", "bytes"), "data.seq_len": (2, 9, 24)},
        "synthetic": {"data.task": ("recall", "copying", "induction"), "data.seq_len": (16, 24)},
    },
    "data.batch_size": (1, 3),
    "data.mask_documents": BOOL,
    "optim": ("adamw", "muon"),
    "optim.schedule": ("cosine", "wsd"),
    "optim.warmup_fraction": (0, 0.99),
    "optim.decay_fraction": (0, 1),
    "loss.mtp_weight": (0, 1),
    "trainer.max_steps": (1, 1000),
    "trainer.accumulate_grad_batches": (1, 3),
    "trainer.activation_checkpointing": ("none", "reentrant", "non_reentrant"),
    "trainer.log_every_n_steps": (1, 3),
    "precision": ("auto", "32-true", "bf16-mixed"),
}


def words(draw: Random, choices: Mapping[str, Any] = CHOICES) -> Iterator[str]:
    """One choice for every key, as overrides."""
    for key, values in choices.items():
        value = draw.choice(list(values))
        yield f"{key}={value}"
        if isinstance(values, dict):
            yield from words(draw, values[value])


def accepted() -> Iterator[tuple[list[str], RunConfig]]:
    """Random overrides and their configuration, for those that validation accepts."""
    for number in count():
        line = list(words(Random(number)))
        with suppress(UserError):
            yield line, load_config(line)


def batches(cfg: RunConfig) -> list[Tensor]:
    """The micro-batches of a step: texts that end, an answer to grade, padding in front."""
    shape = (cfg.trainer.accumulate_grad_batches, cfg.data.batch_size, cfg.data.seq_len + 1)
    tokens = torch.randint(257, shape)
    if cfg.data.kind == "synthetic":
        letters = torch.tensor(TOKENIZER.encode("abcdefghijklmnop"))
        tokens = letters[torch.randint(len(letters), shape)]
        tokens[..., -5], tokens[..., -1] = TOKENIZER.encode("=")[0], TOKENIZER.encode(";")[0]
        tokens[..., :4] = TOKENIZER.encode(FILLER)[0]
    tokens[..., 0] = TOKENIZER.end_of_text
    return list(tokens)


def step(cfg: RunConfig) -> float | None:
    """The loss of one optimizer step as training takes it; None where it was not finite."""
    torch.manual_seed(0)
    by_lightning = trainer(
        1,
        precision=resolve_precision(cfg.precision, "cpu"),
        accumulate_grad_batches=cfg.trainer.accumulate_grad_batches,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
    )
    module = LanguageModel(cfg, TOKENIZER, RECORD)
    fit(by_lightning, module, batches(cfg))
    assert by_lightning.global_step == 1
    return module.loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_accepted_configuration_takes_a_step() -> None:
    failed: dict[str, str] = {}
    drawn: Counter[str] = Counter()
    for line, cfg in islice(accepted(), N):
        try:
            assert step(cfg) is not None, "skipped"
        except Exception as error:
            failed[" ".join(line)] = f"{type(error).__name__}: {error}"[:300]
        drawn.update(line)
    print(f"{N} configurations, {len(failed)} failed; {dict(sorted(drawn.items()))}")
    assert not failed, "\n".join(f"{error}\n  {line}" for line, error in failed.items())
    assert min(drawn.values()) >= 5, drawn


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_overflows_is_seen() -> None:
    assert step(load_config(["model=nano", "data.seq_len=8", "model.init_std=1e30"])) is None
