"""Models that `transformers` made, far from their initialisation, as folders with a tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.interop.random_runs import END_OF_TEXT, byte_tokenizer

SMALL = {
    "vocab_size": 300,
    "hidden_size": 36,
    "intermediate_size": 44,
    "moe_intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 22,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "eos_token_id": 0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 0.25,
    "beta_slow": 0.05,
}
V2 = {"model_type": "deepseek_v2", "first_k_dense_replace": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one query matrix": {"q_lora_rank": None},
    "one group": {"n_group": 1, "topk_group": 1},
    "two shared experts": {"n_shared_experts": 2, "norm_topk_prob": False},
    "all layers MoE": {"first_k_dense_replace": 0},
    "no layer MoE": {"first_k_dense_replace": 3},
    "tied": {"tie_word_embeddings": True},
    "eps": {"rms_norm_eps": 1e-3},
    "yarn": {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "yarn of unequal mscales": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}},
    "yarn without mscales": {"rope_parameters": YARN},
    "yarn with one mscale": {"rope_parameters": {**YARN, "mscale_all_dim": 0.5}},
    "yarn that names its amplitude": {
        "rope_parameters": {**YARN, "mscale_all_dim": 0.5, "attention_factor": 1.2}
    },
    "V2": V2,
    "V2, yarn": {**V2, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}},
}


def foreign_folder(folder: Path, **options: Any) -> Any:
    """Save one and return it."""
    torch.manual_seed(0)
    kind = options.pop("model_type", "deepseek_v3")
    config = transformers.AutoConfig.for_model(kind, **(SMALL | options))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6) if p.ndim > 1 else p.uniform_(0.5, 1.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(byte_tokenizer().json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    return model
