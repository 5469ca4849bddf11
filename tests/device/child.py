"""`python child.py GPU OUT.json`: what training does on a GPU without numbers; see `fake.py`."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from mla_lm.bench import steps
from mla_lm.config import RunConfig
from mla_lm.machine import resolve_precision
from tests.conftest import ATTENTION, TINY, load_config
from tests.device.fake import CUDA, GPUS, Attention, Watch, gpu_of

WIDE = ("model.dim=32", "model.ffn.moe_inter_dim=32", "model.mtp_depth=1")  # for `grouped_mm`
EVEN = (  # for fused attention
    "model.sizes.head_dim=16",
    "model.sizes.nope_head_dim=8",
    "model.sizes.rope_head_dim=8",
    "model.sizes.kv_lora_rank=24",
)
MASKED = "data.mask_documents=true"
SMALL = ("model=small", "data.seq_len=2048", "data.batch_size=16", "optim=adamw")


@contextmanager
def counted(watch: Watch, attention: Attention) -> Iterator[dict[str, Any]]:
    """What happens inside."""
    found: dict[str, Any] = {}
    watch.reset()
    attention.kernels.clear()
    yield found
    for name in ("launches", "bytes", "largest"):
        found[name] = getattr(watch, name)
    found |= {"waits": dict(watch.waits), "kernels": dict(attention.kernels)}


def trained(cfg: RunConfig, count: Callable[[], Any]) -> dict[str, Any]:
    """A step like any other; and one after a resume, as it is read from a file."""
    precision = resolve_precision("auto", "cuda")
    with CUDA:
        side, resumed = (steps.ours(cfg, device="cuda") for _ in range(2))
    tokens = torch.zeros(cfg.data.batch_size, cfg.data.seq_len + 1, dtype=torch.int64, device=CUDA)
    if cfg.data.mask_documents:
        side.model.forward = partial(side.model.forward, documents=tokens[:, :-1])
    side.step(tokens, precision)
    with count() as found:
        side.step(tokens, precision)
    on_host = partial(tree_map_only, torch.Tensor, torch.Tensor.cpu)
    resumed.model.load_state_dict(on_host(side.model.state_dict()))
    resumed.optimizer.load_state_dict(on_host(side.optimizer.state_dict()))
    resumed.step(tokens, precision)
    return found


def cases() -> Iterator[tuple[str, Callable[..., Any], tuple[str, ...]]]:
    """Name, action and overrides."""
    for name, kind in ATTENTION.items():
        words = (*TINY, *WIDE, *EVEN, *kind)
        yield f"{name}: train", trained, words
        yield f"{name}: train on masked documents", trained, (*words, MASKED)
    yield "mla: train with Muon", trained, (*TINY, *WIDE, *EVEN, "optim=muon")
    checkpointing = "trainer.activation_checkpointing=non_reentrant"
    yield "mla: train with checkpointing", trained, (*TINY, *WIDE, *EVEN, checkpointing)
    yield "small: train", trained, SMALL


def main(gpu: str, out: Path) -> None:
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, act, words in cases():
        cfg = load_config(list(words))
        with gpu_of(GPUS[gpu]) as (watch, attention):
            try:
                found[name] = act(cfg, partial(counted, watch, attention))
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
