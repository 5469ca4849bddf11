"""Tensors between our state dict and a folder of safetensors shards, each used exactly once.

Importing holds the model and at most `BLOCK` elements of one foreign tensor.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mla_lm.config import ModelConfig
from mla_lm.errors import UserError
from mla_lm.files import read_object
from mla_lm.interop.layout import HEAD, Part, parts
from mla_lm.model import Transformer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READABLE = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
BLOCK = 2**20
ALWAYS_FLOAT32 = "e_score_correction_bias"


def to_hugging_face(state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """The tensors of the files, by name, for a complete state; most share memory with it."""
    tensors: dict[str, Tensor] = {}
    for name in _own_names(state, cfg):
        used = 0
        for part in parts(name, cfg):
            if part.name == HEAD and part.copy:
                continue
            assert part.name not in tensors, part.name
            tensors[part.name] = state[name][part.at]
            used += 0 if part.copy else tensors[part.name].numel()
        assert used == state[name].numel(), f"{used} of {state[name].numel()} elements of {name}"
    return tensors


def write_shards(
    tensors: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype, max_bytes: int
) -> None:
    """Write `tensors` into as few files as `max_bytes` allows, with an index if there are several.

    Weights are written as `dtype`; the routing biases stay float32.
    """
    dtypes = {name: t.dtype if ALWAYS_FLOAT32 in name else dtype for name, t in tensors.items()}
    sizes = {name: t.numel() * dtypes[name].itemsize for name, t in tensors.items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = {
        f"model-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE: names
        for i, names in enumerate(shards, start=1)
    }
    for file, names in files.items():
        shard = {name: tensors[name].to(dtypes[name], copy=True).contiguous() for name in names}
        save_file(shard, folder / file, {"format": "pt"})
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


class Shards:
    """The tensors of a folder by name; a file is memory-mapped only while one of them is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index, single = folder / INDEX, folder / SINGLE
        if index.is_file():
            weight_map = read_object(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{index}: holds no weight_map")
            self.file_of = {name: folder / str(file) for name, file in weight_map.items()}
            for file in self.file_of.values():
                if file.parent != folder:
                    raise UserError(f"{index}: {file} is not in this folder")
        elif single.is_file():
            with _opened(single) as tensors:
                self.file_of = dict.fromkeys(tensors.keys(), single)
        else:
            raise UserError(
                f"{folder}: neither {SINGLE} nor {INDEX} (pickle is not read: save as safetensors)"
            )

    def holds_layer(self, layer: int) -> bool:
        """Whether any tensor of this layer is there."""
        return any(name.startswith(f"model.layers.{layer}.") for name in self.file_of)

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor that is there; UserError where it cannot be read."""
        with _opened(self.file_of[name]) as tensors:
            found = tensors.get_slice(name).get_dtype()
        if found not in READABLE:
            kinds = ", ".join(READABLE)
            raise UserError(f"{self.file_of[name]}: {name} is {found}; {kinds} can be read")
        return READABLE[found]

    def blocks(self, name: str, shape: torch.Size) -> Iterator[tuple[int, Tensor]]:
        """Copies of rows of a tensor that is there, each with the index of its first row.

        UserError when the tensor has another shape.
        """
        file = self.file_of[name]
        with _opened(file) as tensors:
            found = tensors.get_slice(name).get_shape()
        if found != list(shape):
            raise UserError(f"{file}: {name} has shape {found}, not {list(shape)}")
        n_rows = max(1, BLOCK // shape[1:].numel())
        for first in range(0, shape[0], n_rows):
            with _opened(file) as tensors:
                rows = tensors.get_slice(name)[first : first + n_rows].clone()
            yield first, rows


def read_state(shards: Shards, cfg: ModelConfig) -> dict[str, Tensor]:
    """A state dict for `Transformer(cfg)` in the dtypes of the files.

    Raises UserError naming a tensor that is missing, left over, of another shape or no copy.
    """
    with torch.device("meta"):
        wanted = Transformer(cfg).state_dict()
    plan = {name: parts(name, cfg) for name in _own_names(wanted, cfg)}
    copy_of = {part.name: part.copy for pieces in plan.values() for part in pieces}
    optional = {name for name, copy in copy_of.items() if copy}
    found, needed = shards.file_of.keys() - optional, copy_of.keys() - optional
    for names, what in ((found - needed, "that are not used"), (needed - found, "missing")):
        if names:
            few = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
            raise UserError(f"{shards.folder}: tensors {what} ({len(names)}): {few}")
    state = {name: _assembled(shards, pieces, wanted[name]) for name, pieces in plan.items()}
    if cfg.tie_embeddings:
        state["lm_head.weight"] = state["embed.weight"]
    return state


def _assembled(shards: Shards, pieces: list[Part], wanted: Tensor) -> Tensor:
    first = pieces[0]
    dtype = wanted.dtype if ALWAYS_FLOAT32 in first.name else shards.dtype(first.name)
    ours = torch.empty(wanted.shape, dtype=dtype)
    for part in pieces:
        if part.copy and part.name not in shards.file_of:
            continue
        if (theirs := shards.dtype(part.name)) != dtype and ALWAYS_FLOAT32 not in part.name:
            raise UserError(f"{shards.folder}: {part.name} is {theirs}, {first.name} {dtype}")
        place = ours[part.at]  # a view: DeepSeek's layout permutes no rows
        for row, block in shards.blocks(part.name, place.shape):
            rows = place[row : row + len(block)]
            if not part.copy:
                rows.copy_(block)
            elif not torch.equal(rows, block):
                raise UserError(f"{shards.folder}: {part.name} is no copy of {first.name}")
    return ours


def _own_names(state: Mapping[str, Any], cfg: ModelConfig) -> list[str]:
    return [name for name in state if not (name == "lm_head.weight" and cfg.tie_embeddings)]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error})") from None
