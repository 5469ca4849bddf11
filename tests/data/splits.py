"""What each split of a corpus must hold, and what it holds."""

import hashlib
from pathlib import Path

import numpy as np

from mla_lm.data import PreparedData

SPLITS = ("train", "val")


def hashed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def file_texts(folder: Path) -> dict[str, str]:
    """The documents of a folder by their keys."""
    return {p.name: p.read_text() for p in sorted(folder.iterdir())}


def split_of(texts: dict[str, str], fraction: float) -> dict[str, list[str]]:
    """What each split must hold, in order; the keys are the keys of the documents."""
    held_out = {k for k in texts if hashed(k) < fraction * 2**64} or {min(texts, key=hashed)}
    return {
        "train": [text for key, text in texts.items() if key not in held_out],
        "val": [text for key, text in texts.items() if key in held_out],
    }


def documents(data: PreparedData, split: str) -> list[str]:
    ids = getattr(data, split)[:]
    starts = np.flatnonzero(ids == data.tokenizer.end_of_text)
    assert starts[0] == 0
    return [data.tokenizer.decode(part[1:].tolist()) for part in np.split(ids, starts[1:])]


def assert_same(one: PreparedData, other: PreparedData) -> None:
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(one, split)[:], getattr(other, split)[:])
    assert one.tokenizer.json == other.tokenizer.json
    assert one.manifest == other.manifest
