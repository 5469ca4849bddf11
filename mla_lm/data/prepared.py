"""A prepared corpus: a folder of token files, their tokenizer and a manifest that vouches for them.

Sizes, tokenizer and manifest are checked whenever it is opened, every byte with `verify="full"`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mla_lm.data.shards import Shard, TokenStream, digest, write
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError

MANIFEST = "manifest.json"
SPLITS = ("train", "val")


class PreparedData(NamedTuple):
    """The ids of both splits, the tokenizer, and where they came from."""

    train: TokenStream
    val: TokenStream
    tokenizer: Tokenizer
    manifest: dict[str, Any]

    @property
    def val_sha256(self) -> str:
        """Of the ids of the validation split, in order."""
        return sha256("".join(shard["sha256"] for shard in self.manifest["val"]["shards"]))

    def describe(self, *, n_dropped: int) -> str:
        """A line for the console; `n_dropped` tokens fill no row of a batch."""
        tokens = f"{len(self.train):,} tokens to train on ({n_dropped} fill no row)"
        return f"{'corpus':15} {self.manifest['name']}, {tokens}, {len(self.val):,} to validate on"


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest with its own digest."""
    sealed = {**content, "sha256": sha256(content)}
    write(folder / MANIFEST, json.dumps(sealed, indent=2) + "\n")


def sha256(content: Mapping[str, Any] | str) -> str:
    """Digest of a text or of plain containers."""
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def open_prepared(folder: Path, *, verify: str) -> PreparedData:
    """Map a prepared folder; raises UserError naming the file that is not as it was prepared."""
    manifest = _read_manifest(folder)
    tokenizer = _read_tokenizer(folder, manifest)
    dtype = np.dtype(manifest["dtype"])
    streams = []
    for split in SPLITS:
        shards = [
            Shard(folder / entry["path"], entry["tokens"], entry["sha256"])
            for entry in manifest[split]["shards"]
        ]
        for shard in shards:
            _check_size(shard, dtype.itemsize)
            if verify == "full" and digest(shard.path) != shard.sha256:
                raise UserError(f"{shard.path}: its bytes have changed; delete {folder}")
        streams.append(TokenStream(shards, dtype, vocab_size=tokenizer.vocab_size))
    return PreparedData(streams[0], streams[1], tokenizer, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        sealed = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {type(error).__name__}; delete {folder}") from None
    if sealed != sha256(manifest):
        raise UserError(f"{path}: edited or damaged; delete {folder}")
    return dict(manifest)


def _read_tokenizer(folder: Path, manifest: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {type(error).__name__}; delete {folder}") from None
    if sha256(content) != manifest["tokenizer_sha256"]:
        raise UserError(f"{path}: changed after preparation; delete {folder}")
    return Tokenizer(content, end_of_text=manifest["settings"]["tokenizer"]["end_of_text"])


def _check_size(shard: Shard, itemsize: int) -> None:
    size = shard.path.stat().st_size if shard.path.exists() else 0
    if size != shard.tokens * itemsize:
        raise UserError(
            f"{shard.path}: {size} bytes where {shard.tokens * itemsize} belong; "
            f"delete {shard.path.parent}"
        )
