"""A prepared corpus: a folder of token files, their tokenizer, and a manifest with their digests.

The manifest, the tokenizer and the size of every shard are checked whenever the folder is opened,
every byte with `verify="full"`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mla_lm.data.shards import Shard, TokenStream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import digest, read_object, replacing

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
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
        return f"{'corpus':11} {self.manifest['name']}, {tokens}, {len(self.val):,} to validate on"


def sha256(content: Mapping[str, Any] | str) -> str:
    """Digest of a text or of plain containers."""
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest with its own digest; it appears whole or not at all."""
    with replacing(folder / MANIFEST) as temporary:
        sealed = {**content, "sha256": sha256(content)}
        temporary.write_text(json.dumps(sealed, indent=2) + "\n")


def open_prepared(folder: Path, *, verify: str) -> PreparedData:
    """Map a prepared folder; raises UserError naming the file that is not as it was prepared."""
    try:
        return _open(folder, verify=verify)
    except UserError as error:
        raise UserError(f"{error}; delete {folder}") from None
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; delete {folder}") from None


def _open(folder: Path, *, verify: str) -> PreparedData:
    manifest = read_object(folder / MANIFEST)
    if manifest.pop("sha256", None) != sha256(manifest):
        raise UserError(f"{folder / MANIFEST}: edited or damaged")
    if digest(folder / TOKENIZER) != manifest["tokenizer_sha256"]:
        raise UserError(f"{folder / TOKENIZER}: changed after preparation")
    content = (folder / TOKENIZER).read_text(encoding="utf-8")
    end_of_text = manifest["settings"]["tokenizer"]["end_of_text"]
    tokenizer = Tokenizer(content, end_of_text=end_of_text)
    dtype = np.dtype(manifest["dtype"])
    streams = []
    for split in SPLITS:
        entries = manifest[split]["shards"]
        shards = [Shard(folder / e["path"], e["tokens"], e["sha256"]) for e in entries]
        for path, tokens, sha in shards:
            if (size := path.stat().st_size) != tokens * dtype.itemsize:
                raise UserError(f"{path}: {size} bytes where {tokens * dtype.itemsize} belong")
            if verify == "full" and digest(path) != sha:
                raise UserError(f"{path}: its bytes have changed")
        streams.append(TokenStream(shards, dtype, vocab_size=tokenizer.vocab_size))
    return PreparedData(streams[0], streams[1], tokenizer, manifest)
