"""An import holds the model once, and little more, however many files it comes in."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mla_lm.config import ModelConfig
from mla_lm.interop import config_dict, to_hugging_face, write_shards
from mla_lm.model import Transformer
from tests.conftest import tiny_config
from tests.interop.random_runs import END_OF_TEXT, byte_tokenizer
from tests.processes import environment
from tests.runs.conftest import checkpoint

MODELS = {
    "matrices": (
        "model.dim=768",
        "model.n_layers=6",
        "model.ffn.moe_inter_dim=640",
        "model.ffn.n_routed_experts=12",
        "model.mtp_depth=0",
    ),
    "vocabulary": ("model.dim=512", "model.vocab_size=75000", "model.mtp_depth=1"),
}
STATUS = Path("/proc/self/status")
IMPORT = f"""
import sys
from mla_lm.commands import import_
import_.run(sys.argv[1:])
print(open("{STATUS}").read())
"""


def foreign(folder: Path, cfg: ModelConfig, *, shard_bytes: int) -> None:
    """A folder of such a model, in bfloat16."""
    folder.mkdir()
    tensors = to_hugging_face(Transformer(cfg).state_dict(), cfg)
    write_shards(tensors, folder, dtype=torch.bfloat16, max_bytes=shard_bytes)
    (folder / "config.json").write_text(json.dumps(config_dict(cfg)))
    (folder / "tokenizer.json").write_text(byte_tokenizer().json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))


def peak_bytes(src: Path, out: Path) -> int:
    """Of a process that imports."""
    command = [sys.executable, "-c", IMPORT, f"src={src}", f"out={out}"]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", result.stdout)
    return 1024 * int(peak)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> int:
    """What importing a tiny model takes."""
    place = tmp_path_factory.mktemp("small")
    foreign(place / "src", tiny_config().model, shard_bytes=10**10)
    return peak_bytes(place / "src", place / "run")


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("large", "shard_bytes"),
    [(MODELS["matrices"], 10**7), (MODELS["vocabulary"], 10**10)],
    ids=MODELS,
)
def test_memory_is_that_of_the_model(
    large: tuple[str, ...], shard_bytes: int, without: int, tmp_path: Path
) -> None:
    foreign(tmp_path / "src", tiny_config(*large).model, shard_bytes=shard_bytes)
    with_it = peak_bytes(tmp_path / "src", tmp_path / "run")
    size = checkpoint(tmp_path / "run", 0).stat().st_size
    assert size > 1e8
    share = (with_it - without) / size
    print(f"peak {share:.3f} of {size / 1e6:.0f} MB")
    assert 0.9 < share < 1.2
