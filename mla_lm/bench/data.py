"""Suite `data`: tokenising against the bare library, memory of a preparation, cost of the loader.

The text is Python's standard library; larger corpora repeat it, every document marked anew.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch

from mla_lm.bench.report import Row, interleaved, median_row, timed
from mla_lm.config.compose import load_config
from mla_lm.data import TrainLoader, prepare
from mla_lm.data.corpora import Document, open_corpus
from mla_lm.data.encoder import Encoder, State
from mla_lm.data.prepared import open_prepared, sha256, write_manifest
from mla_lm.data.shards import SHARD_BYTES, TokenStream, shard_path
from mla_lm.data.tokenizer import Tokenizer, pieces
from mla_lm.model import Transformer
from mla_lm.objective.losses import next_token_loss
from mla_lm.objective.optimizer import build_optimizer

END_OF_TEXT = "<|endoftext|>"
ROUNDS = 5
PREPARE = """
import sys
from pathlib import Path
from mla_lm.config.compose import load_config
from mla_lm.data import prepare
prepare(load_config(sys.argv[1:]).data)
status = Path("/proc/self/status")
print(*(line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line))
"""  # not `getrusage`: its maximum starts at the size of the parent process


def run(megabytes: Sequence[int]) -> list[Row]:
    """All figures; corpora of the given sizes are prepared one after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*tokenizing(folder)]
        for size in megabytes if sys.platform == "linux" else ():
            rows += preparing(folder, size)
        return [*rows, *loading(folder), *opening(folder)]


def library_texts() -> list[str]:
    """The documents of the standard library."""
    corpus = open_corpus(load_config().data)
    return [text for d in corpus.train() if (text := "".join(d.parts))]


def tokenizing(folder: Path) -> Iterator[Row]:
    """Text to shards, and the library alone on ready-made pieces: MB/s with a BPE of 8,192."""
    texts = library_texts()
    tokenizer = Tokenizer.train(texts, vocab_size=8192, end_of_text=END_OF_TEXT)
    cut = [piece for text in texts for piece in pieces([text])]
    n_bytes = sum(len(text.encode()) for text in texts)
    targets = (folder / f"encoded-{i}" for i in count())

    def ours() -> tuple[float, TokenStream]:
        target = next(targets)
        target.mkdir()
        started = time.perf_counter()
        encoder = Encoder(target, tokenizer, State(0), np.dtype(np.uint16))
        for text in texts:
            encoder.add(Document(b"", (text,)), "train")
        shards = encoder.close()["train"]
        seconds = time.perf_counter() - started
        stream = TokenStream(shards, np.dtype(np.uint16), vocab_size=tokenizer.vocab_size)
        return n_bytes / 1e6 / seconds, stream

    def bare() -> tuple[float, list[list[int]]]:
        started = time.perf_counter()
        ids = tokenizer.encode_batch(cut)
        return n_bytes / 1e6 / (time.perf_counter() - started), ids

    stream, alone = ours()[1], bare()[1]
    written = stream[0 : len(stream)]
    expected = np.array([i for piece in alone for i in piece])
    assert np.array_equal(written[written != tokenizer.end_of_text], expected)
    speeds = interleaved([lambda: ours()[0], lambda: bare()[0]], rounds=ROUNDS)
    ratios = [one / other for one, other in zip(*speeds, strict=True)]
    yield median_row("tokenize, text to shards", speeds[0], "MB/s", goal=">= 2.5")
    yield median_row("tokenize, library alone", speeds[1], "MB/s")
    yield median_row("tokenize, ratio", ratios, "x")


def preparing(folder: Path, megabytes: int) -> Iterator[Row]:
    """A whole preparation in a process of its own: speed from its start, peak memory (Linux)."""
    path = folder / f"corpus-{megabytes}.jsonl"
    write_corpus(path, megabytes * 10**6)
    words = ["data=jsonl", f"data.path='{path}'", f"data.cache_dir='{folder / 'cache'}'"]
    started = time.perf_counter()
    command = [sys.executable, "-c", PREPARE, *words, "model.vocab_size=8192"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    peak = int(result.stdout.split()[-1])  # kB
    path.unlink()
    yield Row(f"prepare {megabytes} MB, in all", megabytes / seconds, "MB/s")
    yield Row(f"prepare {megabytes} MB, memory", peak / 1024, "MiB", goal="<= 1500")


def write_corpus(path: Path, n_bytes: int) -> None:
    """JSON lines with about that much text."""
    texts, written = library_texts(), 0
    with path.open("w") as file:
        for number in count():
            text = f"# {number}\n{texts[number % len(texts)]}"
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text)
            if written >= n_bytes:
                return


def loading(folder: Path) -> Iterator[Row]:
    """A batch of the loader against a training step of the `tiny` preset."""
    cfg = load_config(["model=tiny", f"data.cache_dir='{folder / 'cache'}'"])
    shape = {"seq_len": cfg.data.seq_len, "batch_size": cfg.data.batch_size}
    loader = TrainLoader(prepare(cfg.data).train, **shape, accumulate=1, seed=1)
    batches = iter(loader)
    model = Transformer(cfg.model)
    optimizer = build_optimizer(model, cfg.optim)

    def load() -> float:
        return timed(lambda: [next(batches) for _ in range(20)]) / 20

    def train() -> float:
        return timed(step)

    def step() -> None:
        tokens = next(batches)
        next_token_loss(model(tokens[:, :-1]).logits, tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    loads, steps = interleaved([load, train], rounds=ROUNDS)
    shares = [100 * one / other for one, other in zip(loads, steps, strict=True)]
    yield median_row("load a batch", [1e3 * seconds for seconds in loads], "ms")
    yield median_row("train a batch, tiny", [1e3 * seconds for seconds in steps], "ms")
    yield median_row("load / train", shares, "%", goal="<= 2")


def opening(folder: Path) -> Iterator[Row]:
    """Open 10 GB of tokens in sparse files and read the first batch."""
    target, n_shards = folder / "sparse", 10 * 10**9 // SHARD_BYTES + 1
    target.mkdir()
    tokenizer = Tokenizer.train((), vocab_size=257, end_of_text=END_OF_TEXT)
    (target / "tokenizer.json").write_text(tokenizer.json)
    splits = {}
    for split, n_files in (("train", n_shards), ("val", 1)):
        paths = [shard_path(target, split, index) for index in range(n_files)]
        for path in paths:
            with path.open("wb") as file:
                file.truncate(SHARD_BYTES)
        entries = [{"path": p.name, "tokens": SHARD_BYTES // 2, "sha256": ""} for p in paths]
        splits[split] = {"shards": entries}
    content = {
        "settings": {"tokenizer": {"end_of_text": END_OF_TEXT}},
        "dtype": "uint16",
        "tokenizer_sha256": sha256(tokenizer.json),
        **splits,
    }
    write_manifest(target, content)

    def first_batch() -> torch.Tensor:
        data = open_prepared(target, verify="sizes")
        loader = TrainLoader(data.train, seq_len=256, batch_size=8, accumulate=1, seed=1)
        return next(iter(loader))

    seconds = [timed(first_batch) for _ in range(ROUNDS)]
    yield median_row("open 10 GB, first batch", seconds, "s", goal="< 1")
