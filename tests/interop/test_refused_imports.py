"""Folders that are not taken: each in one line that names what is wrong, and nothing is written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mla_lm.commands import export, import_
from mla_lm.interop.weights import INDEX, SINGLE
from mla_lm.model import Transformer
from tests.conftest import one_line, tiny_config
from tests.interop.foreign_models import foreign_folder
from tests.interop.random_runs import checkpoint_of


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "theirs"
    foreign_folder(folder)
    return folder


def refusal(src: Path, *words: str) -> str:
    """What is said; beside the folder nothing may be left."""
    out = src.parent / "out"
    before = sorted(out.parent.iterdir())
    said = one_line(lambda: import_.run([f"src={src}", f"out={out}", *words]))
    assert sorted(out.parent.iterdir()) == before
    return said


@pytest.fixture
def src(good: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "src")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "auto_map": ({"AutoModelForCausalLM": "modeling_evil.Evil"}, "auto_map={'Auto"),
    "hidden_act": ("gelu", "hidden_act=gelu"),
    "attention_bias": (True, "attention_bias=True"),
    "rope_interleave": (False, "rope_interleave=False"),
    "scoring_func": ("softmax", "scoring_func=softmax"),
    "topk_method": ("greedy", "topk_method=greedy"),
    "moe_layer_freq": (2, "moe_layer_freq=2"),
    "num_key_value_heads": (2, "num_key_value_heads=2"),
    "quantization_config": ({"quant_method": "fp8"}, "quantization_config={'quant"),
    "use_qk_norm": (True, "use_qk_norm=True"),
    "hidden_size": ("36", "hidden_size=36"),
    "rope_scaling": ({"type": "linear", "factor": 2.0}, "rope_parameters.rope_type=linear"),
    "rope_parameters": ({"rope_type": "yarn", "truncate": False}, "rope_parameters.truncate=F"),
    "model_type": ("llama", "model_type=llama"),
    "architectures": (["LlamaForCausalLM"], "architectures=['Llama"),
    "kv_lora_rank": (None, "kv_lora_rank=None: missing"),
}


@pytest.mark.parametrize(("key", "value", "said"), [(k, *v) for k, v in UNSUPPORTED.items()])
def test_what_is_not_computed_here_is_named_with_its_value(
    key: str, value: object, said: str, src: Path
) -> None:
    edit_config(src, **{"rope_parameters": None, "rope_theta": 1e4, key: value})
    assert refusal(src).startswith(f"config.json: {said}")


Edit = Callable[[dict[str, Tensor]], object]


def edit_tensors(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


GATE = "model.layers.1.mlp.gate.weight"
EXPERT = "model.layers.2.mlp.experts.3.up_proj.weight"
EDITS: dict[str, tuple[Edit, str]] = {
    "not finite": (lambda t: t[EXPERT].fill_(torch.inf), f"{EXPERT} holds values that are not fin"),
    "missing": (lambda t: t.pop(EXPERT), f"tensors missing (1): {EXPERT}"),
    "extra": (lambda t: t.update(extra=torch.ones(2)), "tensors that are not used (1): extra"),
    "shape": (
        lambda t: t.update({GATE: t[GATE].T.contiguous()}),
        f"{GATE} has shape [36, 8], not [8, 36]",
    ),
    "type": (lambda t: t.update({GATE: t[GATE].to(torch.float8_e4m3fn)}), f"{GATE} is F8_E4M3"),
    "mixed types": (
        lambda t: t.update({EXPERT: t[EXPERT].bfloat16()}),
        f"{EXPERT} is torch.bfloat16, model.layers.2.mlp.experts.0.gate_proj.weight torch.float32",
    ),
    "another embedding": (
        lambda t: t.update({"model.layers.3.embed_tokens.weight": torch.ones(300, 36)}),
        "tensors missing (42): model.layers.3.",
    ),
}


@pytest.mark.parametrize(("edit", "said"), EDITS.values(), ids=EDITS)
def test_tensors_that_do_not_fit_are_named(edit: Edit, said: str, src: Path) -> None:
    edit_tensors(src, edit)
    assert said in refusal(src)


@pytest.mark.parametrize("name", ["embed_tokens", "shared_head.head"])
def test_an_mtp_layer_with_ends_of_its_own_is_named(name: str, tmp_path: Path) -> None:
    cfg = tiny_config("model.mtp_depth=1")
    path = checkpoint_of(cfg, Transformer(cfg.model), tmp_path)
    export.run([f"ckpt={path}", f"out={tmp_path / 'src'}"])
    copy = f"model.layers.3.{name}.weight"
    edit_tensors(tmp_path / "src", lambda tensors: tensors[copy].add_(1e-6))
    assert f"{copy} is no copy of" in refusal(tmp_path / "src")
    edit_tensors(tmp_path / "src", lambda tensors: tensors.pop(copy))
    import_.run([f"src={tmp_path / 'src'}", f"out={tmp_path / 'out'}"])  # it may be left out


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def shards_in(folder: Path, **files: str) -> None:
    of_all = dict.fromkeys(load_file(folder / SINGLE), SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": of_all | {GATE: files["gate"]}}))


def separator_is(folder: Path, token: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": token}))


UNREADABLE = f"{SINGLE}: not a readable safetensors file"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"), "pickle is not read"),
    "cut short": (lambda f: os.truncate(f / SINGLE, 9999), UNREADABLE),
    "shard elsewhere": (lambda f: shards_in(f, gate="../x"), "../x is not in this folder"),
    "shard missing": (lambda f: shards_in(f, gate="y"), "y: not a readable safetensors file"),
    "shard a pipe": (lambda f: (os.mkfifo(f / "y"), shards_in(f, gate="y")), "not a regular file"),
    "config a pipe": (lambda f: piped(f / "config.json"), "config.json: cannot be read"),
    "tokenizer a pipe": (lambda f: piped(f / "tokenizer.json"), "not a regular file"),
    "layers": (lambda f: edit_config(f, num_hidden_layers=9999), "bytes hold fewer"),
    "more layers": (lambda f: edit_config(f, num_hidden_layers=10**6), "model.n_layers=1000000"),
    "experts": (lambda f: edit_config(f, n_routed_experts=2**20), "bytes hold fewer"),
    "shard without a name": (lambda f: shards_in(f, gate="y\0"), "must match pattern"),
    "shard named by half a character": (lambda f: shards_in(f, gate="\ud800"), "valid string"),
    "index of another shape": (lambda f: (f / INDEX).write_text("[]"), "must be a JSON object"),
    "index without a map": (lambda f: (f / INDEX).write_text("{}"), "its 0 bytes hold fewer"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: cannot be read"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
    "not tied": (
        lambda f: edit_config(f, tie_word_embeddings=True),
        "lm_head.weight is no copy of model.embed_tokens.weight",
    ),
    "groups that do not divide": (lambda f: edit_config(f, n_group=3), "model.ffn.n_groups"),
    "gates of V2": (
        lambda f: edit_config(f, model_type="deepseek_v2", architectures=["DeepseekV2ForCausalLM"]),
        "config.json: model_type=deepseek_v2: its gates are",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer=FILE"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: "),
    "no separator": (lambda f: separator_is(f, {}), "end_of_text=TOKEN"),
    "unknown separator": (lambda f: separator_is(f, "${oc.env:HOME}"), "end_of_text=TOKEN"),
}


@pytest.mark.parametrize(("change", "said"), FOLDERS.values(), ids=FOLDERS)
def test_folders_that_cannot_be_used_are_named(
    change: Callable[[Path], object], said: str, src: Path
) -> None:
    change(src)
    assert said in refusal(src)


def test_words_that_cannot_be_followed_are_named(src: Path) -> None:
    word = "data/tokenizer=bytes"
    assert refusal(src, word) == f"{word}: the tokenizer is that of src, or tokenizer=FILE"
    assert refusal(src, "data.sequence_length=3").startswith("data.sequence_length: unknown")
    assert refusal(src.parent / "x") == f"src={src.parent / 'x'}: no such file or folder"
