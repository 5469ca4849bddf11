"""Models far from their initialisation, as folders, and what `transformers` makes of those."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from mla_lm.interop import config_dict, to_hugging_face, write_shards
from mla_lm.model import Transformer
from tests.conftest import random_tokens, randomized, tiny_config


def build(*overrides: str, depth: int = 0) -> Transformer:
    cfg = tiny_config(f"model.mtp_depth={depth}", *overrides).model
    return randomized(Transformer(cfg)).eval()


def write(model: Transformer, state: dict[str, Tensor], folder: Path) -> None:
    """A folder as `from_pretrained` reads it."""
    (folder / "config.json").write_text(json.dumps(config_dict(model.cfg)))
    write_shards(state, folder, dtype=torch.float32, max_bytes=10**9)


def theirs_class(folder: Path) -> Any:
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, name)


def load(folder: Path) -> Any:
    """Their model; every tensor on disk must have been used, and none missed."""
    theirs, info = theirs_class(folder).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return theirs.eval()


@torch.no_grad()
def check_logits(
    model: Transformer, folder: Path, fault: Callable[[dict[str, Tensor]], None] | None = None
) -> None:
    """Ours against theirs from files, which a planted fault may have changed."""
    state = to_hugging_face(model.state_dict(), model.cfg)
    if fault is not None:
        fault(state)
    write(model, state, folder)
    tokens = random_tokens(model.cfg, 2, model.cfg.max_seq_len)
    ours = model(tokens).logits
    assert ours.std() > 0.1
    torch.testing.assert_close(load(folder)(tokens).logits, ours, rtol=1e-5, atol=1e-5)


def continued(theirs: Any, prompt: Tensor, n_tokens: int, **options: Any) -> list[list[int]]:
    """The prompt (1, T) and `n_tokens` that their greedy decoding gives."""
    text = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    ids: list[list[int]] = text.tolist()
    return ids
