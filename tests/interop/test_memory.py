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
        "model.dim=1024",
        "model.n_layers=8",
        "model.ffn.moe_inter_dim=640",
        "model.ffn.n_routed_experts=12",
        "model.mtp_depth=0",
    ),
    "vocabulary": ("model.dim=1024", "model.vocab_size=75000", "model.mtp_depth=1"),
}
STATUS = Path("/proc/self/status")
IMPORT = f"""
import sys
from mla_lm.commands import import_
import_.run(sys.argv[1:])
print(open("{STATUS}").read())
"""


def foreign(folder: Path, cfg: ModelConfig, *, shard_bytes: int, dtype: torch.dtype) -> None:
    """A folder of such a model."""
    folder.mkdir()
    tensors = to_hugging_face(Transformer(cfg).state_dict(), cfg)
    write_shards(tensors, folder, dtype=dtype, max_bytes=shard_bytes)
    (folder / "config.json").write_text(json.dumps(config_dict(cfg)))
    (folder / "tokenizer.json").write_text(byte_tokenizer().json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))


def peak_bytes(src: Path, out: Path) -> int:
    """Of a process that imports."""
    command = [sys.executable, "-c", IMPORT, f"src={src}", f"out={out}"]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", result.stdout)
    return 1024 * int(peak)


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("shard_bytes", "dtype"),
    [(10**10, torch.bfloat16), pytest.param(10**8, torch.float32, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("large", MODELS.values(), ids=MODELS)
def test_memory_is_that_of_the_model(
    large: tuple[str, ...], shard_bytes: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    foreign(tmp_path / "small", tiny_config().model, shard_bytes=shard_bytes, dtype=dtype)
    foreign(tmp_path / "large", tiny_config(*large).model, shard_bytes=shard_bytes, dtype=dtype)
    without = peak_bytes(tmp_path / "small", tmp_path / "one")
    with_it = peak_bytes(tmp_path / "large", tmp_path / "two")
    size = checkpoint(tmp_path / "two", 0).stat().st_size
    assert size > 3e8
    share = (with_it - without) / size
    print(f"peak {share:.3f} of {size / 1e6:.0f} MB")
    assert 0.9 < share < 1.2
