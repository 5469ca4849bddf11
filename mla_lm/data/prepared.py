"""A prepared corpus: a folder of token files, their tokenizer, and a manifest with their digests.

A split is a long sequence of ids in shards. The manifest, the tokenizer and the size of every
shard are checked whenever the folder is opened, every byte with `verify="full"`.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import digest, read_object, write_object

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
SPLITS = ("train", "val")
GZIPPED = 2**18  # tokens


class TokenStream:
    """The ids of a split, memory-mapped; a slice copies, across shards where it must.

    Raises UserError naming the shard and the position of an id beyond the vocabulary.
    """

    def __init__(
        self, folder: Path, shards: Sequence[dict[str, Any]], *, dtype: str, vocab_size: int
    ) -> None:
        self.paths = [folder / shard["path"] for shard in shards]
        self.maps = [np.memmap(path, dtype=dtype, mode="r") for path in self.paths]
        self.starts = np.cumsum([0, *map(len, self.maps)])
        self.dtype, self.vocab_size = dtype, vocab_size

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, _ = part.indices(len(self))
        found = [np.empty(0, self.dtype)]
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for index in range(first, int(np.searchsorted(self.starts, stop))):
            offset = int(self.starts[index])
            begin = max(0, start - offset)
            ids = self.maps[index][begin : stop - offset]
            if ids.max(initial=0) >= self.vocab_size:
                at, path = int((ids >= self.vocab_size).argmax()), self.paths[index]
                raise UserError(
                    f"{path}: id {ids[at]} at token {begin + at}, the vocabulary has "
                    f"{self.vocab_size}; delete {path.parent}"
                )
            found.append(ids)
        return np.concatenate(found)


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

    def require_intact(self, split: str) -> None:
        """UserError where a byte of a split is not as it was prepared."""
        stream: TokenStream = getattr(self, split)
        for path, shard in zip(stream.paths, self.manifest[split]["shards"], strict=True):
            if digest(path) != shard["sha256"]:
                raise UserError(f"{path}: its bytes have changed; delete {path.parent}")

    def describe(self, *, n_dropped: int) -> str:
        """A line for the console; `n_dropped` training tokens are left over after the last row."""
        train = f"{len(self.train):,} training tokens ({n_dropped} left over)"
        val = f"{len(self.val):,} for validation (gzip -9: {self.gzip_bits():.2f} bits/byte)"
        return f"{'corpus':11} {self.manifest['name']}, {train}, {val}"

    def gzip_bits(self) -> float:
        """Bits per byte that gzip -9 needs for the validation text, or for its beginning."""
        ids = self.val[:GZIPPED]
        text = b"".join(self.tokenizer.token_bytes[i] for i in ids)
        return 8 * len(gzip.compress(text, 9)) / max(1, len(text))


def sha256(content: Mapping[str, Any] | str) -> str:
    """Digest of a text or of plain containers."""
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest with its own digest; it appears whole or not at all."""
    write_object(folder / MANIFEST, {**content, "sha256": sha256(content)})


def open_prepared(folder: Path, *, verify: str) -> PreparedData:
    """Map a prepared folder; raises UserError naming the file that is not as it was prepared."""
    try:
        found = _open(folder)
    except (UserError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise UserError(f"{reason}; delete {folder}") from None
    for split in SPLITS if verify == "full" else ():
        found.require_intact(split)
    return found


def _open(folder: Path) -> PreparedData:
    manifest = read_object(folder / MANIFEST)
    if manifest.pop("sha256", None) != sha256(manifest):
        raise UserError(f"{folder / MANIFEST}: edited or damaged")
    if digest(folder / TOKENIZER) != manifest["tokenizer_sha256"]:
        raise UserError(f"{folder / TOKENIZER}: changed after preparation")
    content = (folder / TOKENIZER).read_text(encoding="utf-8")
    end_of_text = manifest["settings"]["tokenizer"]["end_of_text"]
    tokenizer = Tokenizer(content, end_of_text=end_of_text)
    dtype, streams = manifest["dtype"], []
    for split in SPLITS:
        shards = manifest[split]["shards"]
        for shard in shards:
            path, belong = folder / shard["path"], shard["tokens"] * np.dtype(dtype).itemsize
            if (size := path.stat().st_size) != belong:
                raise UserError(f"{path}: {size} bytes where {belong} belong")
        vocab_size = tokenizer.vocab_size
        streams.append(TokenStream(folder, shards, dtype=dtype, vocab_size=vocab_size))
    return PreparedData(streams[0], streams[1], tokenizer, manifest)
