"""`python -m mla_lm export`: folders that `transformers` uses as they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import RECORD, WEIGHTS
from mla_lm.commands import export
from mla_lm.model import Transformer
from tests.conftest import one_line, random_tokens
from tests.generation.conftest import decode
from tests.interop.folders import continued
from tests.interop.random_runs import byte_tokenizer, checkpoint_of, model_of, random_config


def exported(checkpoint: Path, out: Path, *words: str) -> Path:
    export.run([f"ckpt={checkpoint}", f"out={out}", *words])
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Transformer]:
    cfg = random_config(3)
    model = model_of(cfg)
    return checkpoint_of(cfg, model, tmp_path_factory.mktemp("small")), model


@pytest.mark.parametrize("seed", range(6))
def test_models_of_random_shape_agree(seed: int, tmp_path: Path) -> None:
    cfg = random_config(seed)
    model = model_of(cfg)
    folder = exported(checkpoint_of(cfg, model, tmp_path), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokens = random_tokens(cfg.model, 2, cfg.model.max_seq_len)
    with torch.no_grad():
        ours, logits = model(tokens).logits, theirs(tokens).logits
    assert ours.std() > 0.1
    torch.testing.assert_close(logits, ours, rtol=1e-5, atol=1e-5)
    prompt = tokens[:1, :9]
    (text,) = continued(theirs, prompt, 64)
    assert decode(model, prompt.tolist(), 64) == [text[9:]]


def test_the_folder_is_complete(small: tuple[Path, Transformer], tmp_path: Path) -> None:
    folder = exported(small[0], tmp_path / "out", "license=mit")
    assert {path.name for path in folder.iterdir()} == {
        ".mla_lm",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {0o666 & folder.stat().st_mode}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "Not evaluated." in card
    config = json.loads((folder / "config.json").read_text())
    for_vllm = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1}
    assert config.items() >= for_vllm.items()
    assert config["ep_size"] == 1
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), byte_tokenizer()
    text = "def f(x):\n    return naïve + 終 🙂 <|endoftext|> "
    assert theirs(text).input_ids == [ours.end_of_text, *ours.encode(text)]  # as training begins it
    assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text
    assert theirs.model_max_length == 80
    batch = theirs(["a", "two words"], padding=True).input_ids
    assert batch[0] == [ours.end_of_text] * 9 + ours.encode("a")  # prompts end at the right


def test_the_card_shows_what_was_measured(small: tuple[Path, Transformer], tmp_path: Path) -> None:
    origin = {"ckpt": small[0].name, "sha256": checkpoint_file.digest_of(small[0])}
    metrics = {**origin, "precision": "32-true", "limit": None, "seq_len": 80}
    path = small[0].with_name("metrics.json")
    path.write_text(json.dumps(metrics | {"val/loss": 3.6, "val/bpb": 1.47714, "x/y": 0.5}))
    card = (exported(small[0], tmp_path / "out") / "README.md").read_text()
    assert "| val/bpb | 1.4771 |" in card
    assert "x/y" not in card
    path.write_text(json.dumps(metrics | {"sha256": "of another of that name", "val/loss": 1.0}))
    assert "Not evaluated." in (exported(small[0], tmp_path / "other") / "README.md").read_text()
    path.unlink()


@torch.no_grad()
def test_shards_hold_the_same(small: tuple[Path, Transformer], tmp_path: Path) -> None:
    whole = load_file(exported(small[0], tmp_path / "whole") / "model.safetensors")
    folder = exported(small[0], tmp_path / "cut", "max_shard_gb=1e-5")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    found = {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    assert found.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    largest = max(tensor.nbytes for tensor in whole.values())
    for file in files:
        tensors = load_file(folder / file).values()
        assert sum(tensor.nbytes for tensor in tensors) <= max(10_000, largest)


SHAPES = ["[]", "{", '{"val/loss": 1.0}', '{"ckpt": 3, "limit": [1]}', "[" * 9999]


@pytest.mark.parametrize("content", SHAPES)
def test_metrics_of_another_shape_are_left_out(
    content: str,
    small: tuple[Path, Transformer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = shutil.copy(small[0], tmp_path)
    (tmp_path / "metrics.json").write_text(content)
    card = (exported(Path(path), tmp_path / "out") / "README.md").read_text()
    assert "Not evaluated." in card
    assert capsys.readouterr().err.startswith(f"skipped {tmp_path / 'metrics.json'}: ")


def refusal(*words: str) -> str:
    return one_line(lambda: export.run(words))


def test_a_folder_that_holds_something_is_left_alone(
    small: tuple[Path, Transformer], tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("x")
    assert refusal(f"ckpt={small[0]}", f"out={tmp_path}") == (
        f"out={tmp_path}: not an empty folder; name a new one"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    exported(small[0], tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.x": torch.ones(1)}, "has other keys: {'x'}"),
        ({"model.norm.weight": torch.ones(3)}, "norm.weight: is torch.float32 [3], not"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: dict[str, Any], said: str, small: tuple[Path, Transformer], tmp_path: Path
) -> None:
    content = checkpoint_file.read(small[0])
    content[WEIGHTS] |= change
    path = tmp_path / "x.ckpt"
    checkpoint_file.write(path, content)
    found = refusal(f"ckpt={path}", f"out={tmp_path / 'out'}")
    assert found.startswith(f"{path}: ")
    assert said in found
    assert not (tmp_path / "out").exists()


def test_a_record_of_another_corpus_is_refused(
    small: tuple[Path, Transformer], tmp_path: Path
) -> None:
    content = checkpoint_file.read(small[0])
    content[RECORD]["data"] = {"name": "x", "bytes_per_token": 2.0, "train": {"documents": []}}
    checkpoint_file.write(tmp_path / "x.ckpt", content)
    said = refusal(f"ckpt={tmp_path / 'x.ckpt'}", f"out={tmp_path / 'out'}")
    assert said.startswith(f"{tmp_path / 'x.ckpt'}: its data cannot be described (")


def test_a_card_shows_names_as_they_are(small: tuple[Path, Transformer], tmp_path: Path) -> None:
    content = checkpoint_file.read(small[0])
    counts = {"documents": 1, "bytes": 2, "tokens": 3}
    corpus = {"name": "<b>|[x](y)\x1b\n# z", "bytes_per_token": 2.0, "train": counts, "val": counts}
    content[RECORD] |= {"data": corpus, "command": "python x\n```\n# z", "environment": {"|": "*"}}
    checkpoint_file.write(tmp_path / "x.ckpt", content)
    card = (exported(tmp_path / "x.ckpt", tmp_path / "[out](x)") / "README.md").read_text()
    assert "\n# \\[out\\](x)\n" in card
    assert r"| corpus | \<b\>\|\[x\](y)\\x1b \# z |" in card
    assert "````bash\npython x\n```\n# z\n````" in card
    assert r"| \| | \* |" in card
