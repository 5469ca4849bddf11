"""`python -m mla_lm import`: what `transformers` saved computes the same here."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from torch import Tensor

from mla_lm import load_checkpoint
from mla_lm.checkpoint.record import PREFIX, WEIGHTS
from mla_lm.commands import export, import_
from mla_lm.config import ModelConfig
from mla_lm.config.compose import validate
from mla_lm.cost import cache_elements_per_token, count_parameters
from mla_lm.interop import to_hugging_face
from mla_lm.interop.config_from_hf import model_section
from mla_lm.objective.losses import next_token_loss
from tests.conftest import random_tokens
from tests.interop.foreign_models import CONFIGS, foreign_folder
from tests.interop.random_runs import (
    END_OF_TEXT,
    checkpoint_of,
    model_of,
    random_config,
)
from tests.runs.conftest import content


def imported(src: Path, out: Path, *words: str) -> Path:
    import_.run([f"src={src}", f"out={out}", *words])
    return out


def state_of(run: Path) -> dict[str, Tensor]:
    weights = content(run / "checkpoints" / "step-000000.ckpt")[WEIGHTS]
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_exported_comes_back(seed: int, dtype: torch.dtype, tmp_path: Path) -> None:
    cfg = random_config(seed)
    model = model_of(cfg)
    path = checkpoint_of(cfg, model, tmp_path)
    name = str(dtype).removeprefix("torch.")
    export.run([f"ckpt={path}", f"out={tmp_path / 'out'}", f"dtype={name}", "max_shard_gb=2e-5"])
    run = imported(tmp_path / "out", tmp_path / "run")
    back, state = state_of(run), model.state_dict()
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        stored = torch.float32 if key.endswith("bias") else dtype
        assert back[key].dtype == stored
        assert torch.equal(back[key], tensor.to(stored)), key
    _, found, tokenizer = load_checkpoint(run)
    for section in ("attention", "rope", "ffn", "norm_eps"):
        assert getattr(found.model, section) == getattr(cfg.model, section)
    assert tokenizer.json == load_checkpoint(path)[2].json


@pytest.mark.parametrize(
    ("tokens", "separator"),
    [
        ({"bos_token": {"content": "<s>"}, "eos_token": END_OF_TEXT}, "<s>"),
        ({"bos_token": None, "eos_token": END_OF_TEXT}, END_OF_TEXT),
    ],
)
def test_texts_begin_as_theirs_do(tokens: dict[str, Any], separator: str, tmp_path: Path) -> None:
    foreign_folder(tmp_path / "theirs")
    path = tmp_path / "theirs" / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["<s>"])
    path.write_text(tokenizer.to_str())
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(tokens))
    _, cfg, found = load_checkpoint(imported(tmp_path / "theirs", tmp_path / "run"))
    assert cfg.data.tokenizer.end_of_text == separator
    assert found.end_of_text == tokenizer.token_to_id(separator)
    (tmp_path / "theirs" / "tokenizer.json").rename(tmp_path / "mine.json")
    words = [f"tokenizer={tmp_path / 'mine.json'}", f"end_of_text={END_OF_TEXT}"]
    named = load_checkpoint(imported(tmp_path / "theirs", tmp_path / "again", *words))[2]
    assert (named.json, named.end_of_text) == (found.json, tokenizer.token_to_id(END_OF_TEXT))


RELEASED = """{
"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3,
"hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432,
"kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
"moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
"n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
"num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
"num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
"qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1,
"factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
"type": "yarn"}, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
"tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
"transformers_version": "4.33.1", "use_cache": true, "v_head_dim": 128, "vocab_size": 129280}"""


def test_the_keys_of_released_models_are_known() -> None:
    """Those that shape DeepSeek-V3's numbers, as its `config.json` gives them."""
    section = model_section(json.loads(RELEASED), ["model.layers.61.eh_proj.weight"])
    cfg = validate(ModelConfig, section)
    assert round(count_parameters(cfg).total / 1e9) in (671, 685)
    assert cache_elements_per_token(cfg) * 2 == 70_272
    assert cfg.mtp_depth == 1


@pytest.mark.parametrize("name", [*CONFIGS, "yarn, said twice"])
def test_random_models_of_theirs_agree(name: str, tmp_path: Path) -> None:
    theirs = foreign_folder(tmp_path / "theirs", **CONFIGS[name.removesuffix(", said twice")])
    if name not in CONFIGS:  # `rope_scaling` beside `rope_parameters`: their class takes the former
        path = tmp_path / "theirs" / "config.json"
        config = json.loads(path.read_text())
        config["rope_scaling"] = config["rope_parameters"] | {"factor": 16.0}
        path.write_text(json.dumps(config))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    run = imported(tmp_path / "theirs", tmp_path / "run")
    model, cfg, _ = load_checkpoint(run)
    model.requires_grad_()
    tokens = random_tokens(cfg.model, 2, 25)
    ours, logits = model(tokens).logits, theirs(tokens).logits
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
    labels = tokens.roll(-1, dims=1)
    next_token_loss(ours, labels).backward()
    next_token_loss(logits, labels).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    ours_there = {name: grads.get(name, t) for name, t in model.state_dict().items()}
    found = to_hugging_face(ours_there, cfg.model)
    for name, grad in grads.items():  # in memory their experts are stacked as well
        found[re.sub(r"blocks\.(\d+)\.ffn", r"model.layers.\1.mlp", name)] = grad
    for name, p in theirs.named_parameters():
        atol = 1e-4 * float(p.grad.std())
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=atol)
