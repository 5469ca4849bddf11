"""A prepared corpus: a folder of token files, their tokenizer, and a manifest with their digests.

A split is a long sequence of ids in shards. The manifest, the tokenizer and the size of every
shard are checked whenever the folder is opened, every byte with `verify="full"`.
"""

import gzip
import hashlib
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError, one_line
from mla_lm.files import digest, read_object, read_text, write_object

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
SPLITS = ("train", "val")
GZIPPED = 2**18  # tokens
FEW = 10_000  # validation tokens


class TokenStream:
    """The ids of a split, memory-mapped; a slice copies, across shards where it must.

    Raises UserError naming the shard and the position of an id beyond the vocabulary.
    """

    def __init__(self, paths: Sequence[Path], *, dtype: str, vocab_size: int) -> None:
        self.paths = paths
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
                raise UserError(f"{path}: its bytes have changed")

    def describe(self, *, n_dropped: int, n_epochs: float) -> str:
        """For the console; `n_dropped` training tokens are left over after the last row."""
        use = f"({n_epochs:,.2f} epochs, {n_dropped} left over)"
        val = f"{len(self.val):,} for validation (gzip -9: {self.gzip_bits():.2f} bits/byte)"
        line = f"{self.manifest['name']}, {len(self.train):,} training tokens {use}, {val}"
        return "\n".join((f"{'corpus':11} {line}", *self.warnings()))

    def warnings(self) -> Iterator[str]:
        """A line for the console where few tokens are validated on."""
        if (n_tokens := len(self.val)) < FEW:
            few = f"only {n_tokens:,} validation tokens, so val/ metrics are noisy"
            yield f"{'warning':11} {few}; hold out more (data.val_fraction, data.val_path)"

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


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Where the ids of a split are."""
    return folder / f"{split}-{index:05}.bin"


def dtype_of(tokenizer: Tokenizer) -> str:
    """The integers that hold every id of the vocabulary."""
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def open_prepared(folder: Path, *, verify: str) -> PreparedData:
    """Map a prepared folder; raises UserError naming the file that is not as it was prepared."""
    try:
        found = _open(folder)
        for split in SPLITS if verify == "full" else ():
            found.require_intact(split)
        return found
    except UserError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    except Exception as error:  # a manifest of another shape; what the `tokenizers` library raises
        reason = f"{folder}: not as it was prepared ({one_line(error)})"
    raise UserError(f"{reason}; delete {folder}")


def _open(folder: Path) -> PreparedData:
    if folder.is_symlink():
        raise UserError(f"{folder}: a link; set data.cache_dir to the folder it leads to")
    for path in (folder / MANIFEST, folder / TOKENIZER):
        _size(path)
    manifest = read_object(folder / MANIFEST)
    if manifest.pop("sha256", None) != sha256(manifest):
        raise UserError(f"{folder / MANIFEST}: edited or damaged")
    if digest(folder / TOKENIZER) != manifest["tokenizer_sha256"]:
        raise UserError(f"{folder / TOKENIZER}: changed after preparation")
    content = read_text(folder / TOKENIZER)
    end_of_text = manifest["settings"]["tokenizer"]["end_of_text"]
    tokenizer = Tokenizer(content, end_of_text=end_of_text)
    dtype, streams = dtype_of(tokenizer), []
    for split in SPLITS:
        paths = []
        for index, shard in enumerate(manifest[split]["shards"]):
            path = shard_path(folder, split, index)
            belong = shard["tokens"] * np.dtype(dtype).itemsize
            if (size := _size(path)) != belong:
                raise UserError(f"{path}: {size} bytes where {belong} belong")
            paths.append(path)
        streams.append(TokenStream(paths, dtype=dtype, vocab_size=tokenizer.vocab_size))
    return PreparedData(streams[0], streams[1], tokenizer, manifest)


def _size(path: Path) -> int:
    """Bytes of a file; UserError for a link, a pipe or a device."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: not a regular file")
    return found.st_size
