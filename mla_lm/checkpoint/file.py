"""One pickle-free file: tensors as safetensors, everything else as JSON in its metadata.

A tree of dicts, lists, tuples, plain values and tensors goes in and comes out equal; a tensor is
named by its place (`optimizer_states/0/state/3/exp_avg`), and one that stands in two places is
stored once. The first field of the metadata is the SHA-256 of the whole file with that field
zeroed, so that no bit can change unnoticed. Knows nothing of runs.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mla_lm.errors import UserError
from mla_lm.files import open_regular, replacing

FORMAT = 2
KEY = "mla_lm"  # the only key of the metadata
TENSOR, TUPLE, ITEMS = "$tensor", "$tuple", "$items"
UNKNOWN = "0" * 64
HEADER = b'{"__metadata__":{"mla_lm":"{\\"sha256\\":\\"'  # behind the 8 bytes of its length
DIGEST_AT = 8 + len(HEADER)
CHUNK = 2**20


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, which holds either all of it or what it held before.

    Raises UserError when the file system refuses, TypeError for a value that is not plain.
    """
    tensors: dict[str, Tensor] = {}
    plain = _Packer(tensors).pack("", content)
    document = {"sha256": UNKNOWN, "format": FORMAT, "content": plain}
    text = json.dumps(document, separators=(",", ":"))
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, {KEY: text})
            with temporary.open("r+b") as file:
                assert _stored_digest(file) == UNKNOWN
                digest = _digest(file)
                file.seek(DIGEST_AT)
                file.write(digest.encode())
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path}: cannot be written ({reason}); the file before it is kept"
        ) from None


def read(path: Path, *keys: str) -> dict[str, Any]:
    """The content, or its top-level `keys` as far as they exist; tensors are on the CPU.

    The whole file is verified first. Raises UserError when a single bit has changed.
    """
    try:
        with open_regular(path) as file, safe_open(path, "pt") as tensors:  # checks all sizes
            if _stored_digest(file) != _digest(file):
                raise ValueError("its SHA-256 is another")
            document = json.loads(tensors.metadata()[KEY])
            if document["format"] != FORMAT:
                other = f"has format {document['format']}, this version reads {FORMAT}"
                raise UserError(f"{path}: {other}; train anew, or use the version that wrote it")
            content = document["content"]
            wanted = {key: content[key] for key in keys if key in content} if keys else content
            return _Unpacker(tensors).unpack(wanted)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in many ways, all of them mean the same
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise UserError(f"{path}: not a checkpoint of mla_lm, or damaged ({reason})") from None


def is_one(path: Path) -> bool:
    """Whether a file looks like a checkpoint, verified or not."""
    with open_regular(path) as file:
        return file.read(DIGEST_AT).endswith(HEADER)


def digest_of(path: Path) -> str:
    """The SHA-256 that a checkpoint holds."""
    with open_regular(path) as file:
        return _stored_digest(file)


def _stored_digest(file: BinaryIO) -> str:
    file.seek(0)
    if not file.read(DIGEST_AT).endswith(HEADER):
        raise ValueError("another header")
    return file.read(len(UNKNOWN)).decode("ascii")


def _digest(file: BinaryIO) -> str:
    """SHA-256 of the file as if its own field were zeros."""
    file.seek(0)
    sha256 = hashlib.sha256(file.read(DIGEST_AT))
    file.read(len(UNKNOWN))
    sha256.update(UNKNOWN.encode())
    while chunk := file.read(CHUNK):
        sha256.update(chunk)
    return sha256.hexdigest()


class _Packer:
    """Takes a tree apart: tensors into `tensors`, the rest into plain JSON values."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.names: dict[tuple[Any, ...], str] = {}  # memory of a tensor -> its name
        self.storages: set[int] = set()

    def pack(self, name: str, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {TENSOR: self.pack_tensor(name, value.detach())}
        if isinstance(value, list | tuple):
            packed = [self.pack(f"{name}/{i}", item) for i, item in enumerate(value)]
            return {TUPLE: packed} if isinstance(value, tuple) else packed
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise TypeError(f"{name}: a checkpoint holds plain values and tensors, not {kind}")
        items = {k: self.pack(f"{name}/{k}".lstrip("/"), v) for k, v in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return items
        return {ITEMS: [[self.pack(name, key), item] for key, item in items.items()]}

    def pack_tensor(self, name: str, tensor: Tensor) -> str:
        where = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and where in self.names:
            return self.names[where]
        storage = tensor.untyped_storage().data_ptr()
        alone = storage not in self.storages and tensor.is_contiguous()
        self.storages.add(storage)
        while name in self.tensors:  # "a/b" and "b" in "a"
            name += "'"
        self.names[where] = name
        self.tensors[name] = tensor.cpu() if alone else tensor.cpu().contiguous().clone()
        return name


class _Unpacker:
    """Puts the tree together again."""

    def __init__(self, tensors: Any) -> None:
        self.tensors = tensors
        self.loaded: dict[str, Tensor] = {}

    def unpack(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.unpack(item) for item in value]
        if not isinstance(value, dict):
            return value
        if TENSOR in value:
            name = value[TENSOR]
            if name not in self.loaded:  # a copy: mapped pages of a truncated file kill the process
                self.loaded[name] = self.tensors.get_tensor(name).clone()
            return self.loaded[name]
        if TUPLE in value:
            return tuple(self.unpack(value[TUPLE]))
        if ITEMS in value:
            return {self.unpack(key): self.unpack(item) for key, item in value[ITEMS]}
        return {key: self.unpack(item) for key, item in value.items()}
