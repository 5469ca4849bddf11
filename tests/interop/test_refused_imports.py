"""Folders that are not taken: each in one line that names what is wrong, and nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mla_lm.commands import export, import_
from mla_lm.errors import UserError
from mla_lm.interop.weights import INDEX, SINGLE
from mla_lm.model import Transformer
from tests.conftest import tiny_config
from tests.interop.foreign_models import foreign_folder
from tests.interop.random_runs import checkpoint_of


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "theirs"
    foreign_folder(folder)
    return folder


def refusal(src: Path, out: Path, *words: str) -> str:
    """What is said; beside the folder nothing may be left."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError) as caught:
        import_.run([f"src={src}", f"out={out}", *words])
    assert sorted(out.parent.iterdir()) == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},
    "hidden_act": "gelu",
    "attention_bias": True,
    "rope_interleave": False,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "moe_layer_freq": 2,
    "num_key_value_heads": 2,
    "quantization_config": {"quant_method": "fp8"},
    "sliding_window": 4096,
    "hidden_size": "36",
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "use_qk_norm": True,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "truncate": False},
    "first_k_dense_replace": -1,
    "kv_lora_rank": None,
    "n_group": None,
}


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_what_is_not_computed_here_is_named_with_its_value(
    key: str, good: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(good, tmp_path / "src")
    value = UNSUPPORTED[key]
    edit_config(folder, **{"rope_parameters": None, "rope_theta": 1e4, key: value})
    said = refusal(folder, tmp_path / "out")
    inside = {
        "rope_scaling": "rope_parameters.rope_type=linear",
        "rope_parameters": "rope_parameters.truncate=False",
    }
    named = f"{key}: missing" if value is None else inside.get(key, f"{key}={value}")
    assert said.startswith(f"config.json: {named[:60]}")


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


GATE = "model.layers.1.mlp.gate.weight"
EXPERT = "model.layers.2.mlp.experts.3.up_proj.weight"
EDITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
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
def test_tensors_that_do_not_fit_are_named(
    edit: Callable[[dict[str, Tensor]], object], said: str, good: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(good, tmp_path / "src")
    edit_tensors(folder, edit)
    assert said in refusal(folder, tmp_path / "out")


def test_a_head_that_is_not_tied_is_named(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "src")
    edit_config(folder, tie_word_embeddings=True)
    said = refusal(folder, tmp_path / "out")
    assert said.endswith("lm_head.weight is no copy of model.embed_tokens.weight")


@pytest.mark.parametrize("name", ["embed_tokens", "shared_head.head"])
def test_an_mtp_layer_with_ends_of_its_own_is_named(name: str, tmp_path: Path) -> None:
    cfg = tiny_config("model.mtp_depth=1")
    path = checkpoint_of(cfg, Transformer(cfg.model), tmp_path)
    export.run([f"ckpt={path}", f"out={tmp_path / 'src'}"])
    copy = f"model.layers.3.{name}.weight"
    edit_tensors(tmp_path / "src", lambda tensors: tensors[copy].add_(1e-6))
    assert f"{copy} is no copy of" in refusal(tmp_path / "src", tmp_path / "out")
    edit_tensors(tmp_path / "src", lambda tensors: tensors.pop(copy))
    import_.run([f"src={tmp_path / 'src'}", f"out={tmp_path / 'out'}"])  # it may be left out


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def cut_short(folder: Path) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:-100])


def outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {GATE: "../elsewhere.safetensors"}}))


def a_shard_short(folder: Path) -> None:
    files = dict.fromkeys(load_file(folder / SINGLE), SINGLE) | {GATE: "model-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (as_pickle, "pickle is not read"),
    "cut short": (cut_short, f"{SINGLE}: not a readable safetensors file"),
    "no tensors": (lambda f: (f / SINGLE).unlink(), f"neither {SINGLE} nor {INDEX}"),
    "shard elsewhere": (outside, "../elsewhere.safetensors is not in this folder"),
    "shard missing": (a_shard_short, "model-00002.safetensors: not a readable safetensors file"),
    "index of another shape": (lambda f: (f / INDEX).write_text("[]"), "must be a JSON object"),
    "index without a map": (lambda f: (f / INDEX).write_text("{}"), "weight_map"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: cannot be read"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer=FILE"),
    "no end of text": (lambda f: (f / "tokenizer_config.json").unlink(), "end_of_text=TOKEN"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: "),
}


@pytest.mark.parametrize(("change", "said"), FOLDERS.values(), ids=FOLDERS)
def test_folders_that_cannot_be_used_are_named(
    change: Callable[[Path], object], said: str, good: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(good, tmp_path / "src")
    change(folder)
    assert said in refusal(folder, tmp_path / "out")


@pytest.mark.parametrize("token", [None, {}, 3, "${oc.env:HOME}"])
def test_a_separator_that_is_no_plain_token_is_named(
    token: object, good: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(good, tmp_path / "src")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": token}))
    assert "name what separates texts by end_of_text=TOKEN" in refusal(folder, tmp_path / "out")


def test_what_goes_together_badly_is_named(good: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out", shutil.copytree(good, tmp_path / "src")
    word = "data/tokenizer=bytes"
    assert refusal(good, out, word) == f"{word}: the tokenizer is that of src, or tokenizer=FILE"
    assert refusal(good, out, "data.sequence_length=3").startswith("data.sequence_length: unknown")
    assert refusal(tmp_path / "x", out) == f"src={tmp_path / 'x'}: no such file or folder"
    edit_config(folder, n_group=3)
    assert refusal(folder, out) == "model.ffn.n_groups=3: must divide n_routed_experts=8"
    edit_config(folder, model_type="deepseek_v2", architectures=["DeepseekV2ForCausalLM"])
    assert refusal(folder, out).startswith("config.json: model_type=deepseek_v2: its gates are")
    (out / "mine").mkdir(parents=True)
    assert refusal(good, out) == f"out={out}: not an empty folder; name a new one"
