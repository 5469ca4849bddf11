"""Runs of random shape, their routing and logits far from flat."""

import random
from functools import cache
from pathlib import Path

import torch

from mla_lm import Transformer
from mla_lm.config import RunConfig
from mla_lm.data import Tokenizer
from tests.conftest import randomized, tiny_config, write_checkpoint

CONTEXT = 80
END_OF_TEXT = "<|endoftext|>"


def random_config(seed: int) -> RunConfig:
    rng = random.Random(seed)
    n_layers, experts = rng.randint(1, 4), rng.choice([3, 6, 8])
    words = {
        "data.seq_len": CONTEXT,
        "model.dim": rng.choice([24, 36, 52]),
        "model.n_layers": n_layers,
        "model.n_heads": rng.choice([1, 3, 4]),
        "model.n_dense_layers": rng.randint(0, n_layers - 1),
        "model.inter_dim": rng.choice([20, 44]),
        "model.norm_eps": rng.choice([1e-6, 1e-3]),
        "model.tie_embeddings": rng.choice(["true", "false"]),
        "model.mtp_depth": rng.randint(0, 2),
        "model.attention.q_lora_rank": rng.choice(["null", 18]),
        "model.attention.kv_lora_rank": rng.choice([12, 20]),
        "model.attention.qk_nope_head_dim": rng.choice([6, 10]),
        "model.attention.qk_rope_head_dim": rng.choice([4, 8]),
        "model.attention.v_head_dim": rng.choice([5, 14]),
        "model.ffn.moe_inter_dim": rng.choice([12, 28]),
        "model.ffn.n_routed_experts": experts,
        "model.ffn.n_shared_experts": rng.randint(1, 2),
        "model.ffn.n_activated_experts": rng.randint(1, 3),
        "model.ffn.n_groups": groups if (groups := rng.choice([1, 2])) and experts > 3 else 1,
        "model.ffn.route_scale": rng.choice([1.0, 2.5]),
        "model.ffn.norm_topk": rng.choice(["true", "false"]),
        "model.rope.theta": rng.choice([100.0, 10000.0]),
    }
    if rng.random() < 0.5:
        words |= {"model/rope": "yarn", "model.rope.original_max_seq_len": 20}
    return tiny_config(*(f"{key}={value}" for key, value in words.items()))


@cache
def byte_tokenizer() -> Tokenizer:
    return Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)


def model_of(cfg: RunConfig) -> Transformer:
    torch.manual_seed(0)
    model = randomized(Transformer(cfg.model)).eval()
    model.n_tokens = byte_tokenizer().vocab_size  # as where it is loaded
    return model


def checkpoint_of(cfg: RunConfig, model: Transformer, folder: Path) -> Path:
    return write_checkpoint(folder / "step-000003.ckpt", cfg, byte_tokenizer(), model)
