"""An import holds the model once, and little more, however many files it comes in."""

import json
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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

MATRICES = "dim=768 n_layers=6 ffn.moe_inter_dim=640 ffn.n_routed_experts=12 mtp_depth=0"
VOCABULARY = "dim=512 vocab_size=75000 mtp_depth=1"
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


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("large", "shard_bytes"), [(MATRICES, 10**7), (VOCABULARY, 10**10)])
def test_memory_is_that_of_the_model(large: str, shard_bytes: int, tmp_path: Path) -> None:
    peaks = []
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:  # this process stays small
        for name, words in (("tiny", ""), ("large", large)):
            cfg = tiny_config(*(f"model.{word}" for word in words.split())).model
            elsewhere.submit(foreign, tmp_path / name, cfg, shard_bytes=shard_bytes).result()
            peaks.append(peak_bytes(tmp_path / name, tmp_path / f"{name}_run"))
    size = checkpoint(tmp_path / "large_run", 0).stat().st_size
    assert size > 1e8
    assert 0.9 < (peaks[1] - peaks[0]) / size < 1.2
