"""Tiny models with distinct dimensions, weights far from their initialisation, one thread."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from mla_lm import Transformer, load_config, machine
from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import PREFIX, RECORD, STEP, WEIGHTS, Record
from mla_lm.config import ModelConfig, RunConfig
from mla_lm.data import Tokenizer
from mla_lm.errors import UserError
from mla_lm.model.moe import Router

machine.keep_freed_memory = lambda: None  # a worker would keep what its largest test took
for kernels in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ[kernels] = "100"  # of 1,024: most are compiled for the shapes of one test
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],  # a machine may be busy
)
settings.load_profile("tests")

TINY = (
    "model=nano",
    "data.seq_len=32",
    "model.vocab_size=263",
    "model.dim=36",
    "model.n_layers=3",
    "model.n_heads=4",
    "model.inter_dim=44",
    "model.sizes.head_dim=14",
    "model.sizes.nope_head_dim=10",
    "model.sizes.rope_head_dim=6",
    "model.sizes.n_kv_heads=2",
    "model.sizes.kv_lora_rank=20",
    "model.sizes.moe_inter_dim=28",
    "model.sizes.n_routed_experts=5",
)
ATTENTION = {
    "mla": ("model/attention=mla",),
    "mla with q compression": ("model/attention=mla", "model.attention.q_lora_rank=22"),
    "mha": ("model/attention=mha",),
    "gqa": ("model/attention=gqa",),
    "mqa": ("model/attention=mqa",),
}
Model = TypeVar("Model", bound=nn.Module)

each_attention = pytest.mark.parametrize("attention", list(ATTENTION.values()), ids=list(ATTENTION))


def without_experts(overrides: Sequence[str]) -> bool:
    """Whether no layer is left that could be balanced."""
    return "model/ffn=dense" in overrides or "model.n_dense_layers=3" in overrides


@cache
def tiny_config(*overrides: str) -> RunConfig:
    """A run whose dimensions all differ, so that no transposed or mixed-up axis goes unnoticed."""
    balance = ["balance=none"] if without_experts(overrides) else []
    return load_config([*TINY, *balance, *overrides])


@torch.no_grad()
def randomized(model: Model) -> Model:
    """`model` itself with weights that bring logits and routing far from uniform."""
    for p in model.parameters():
        p.mul_(6) if p.ndim > 1 else p.uniform_(0.5, 1.5)
    for module in model.modules():
        if isinstance(module, Router):
            module.weight.mul_(2)
            module.e_score_correction_bias.normal_(std=0.3)
    return model


def one_line(action: Callable[[], object]) -> str:
    """The line of the error that `action` ends with."""
    with pytest.raises(UserError) as caught:
        action()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def random_tokens(cfg: ModelConfig, batch: int, length: int) -> Tensor:
    return torch.randint(cfg.vocab_size, (batch, length))


def write_checkpoint(path: Path, cfg: RunConfig, tokenizer: Tokenizer, model: Transformer) -> Path:
    """A file as training leaves it behind step 3, without what only training needs."""
    record = Record.of(cfg, command="", tokenizer=tokenizer.json, data={}, environment={})
    state = {f"{PREFIX}{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint_file.write(path, {RECORD: record.stored(), WEIGHTS: state, STEP: 3})
    return path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _freed_memory_is_returned() -> Iterator[None]:
    """After every file: a worker runs dozens of them."""
    yield
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
