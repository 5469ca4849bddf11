"""Tensors between our state dict and a folder of safetensors shards, each used exactly once.

Importing holds the model and at most `BLOCK` elements of one foreign tensor.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mla_lm.config import ModelConfig
from mla_lm.config.compose import read_as
from mla_lm.errors import UserError
from mla_lm.files import open_regular, write_object
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
    """Write `tensors` into files of at most `max_bytes`, with an index if there are several.

    Weights are written as `dtype`; the routing biases stay float32.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    dtypes = {name: t.dtype if ALWAYS_FLOAT32 in name else dtype for name, t in tensors.items()}
    stored = {
        name: torch.empty(t.shape, dtype=dtypes[name], device="meta") for name, t in tensors.items()
    }
    split = split_torch_state_dict_into_shards(stored, max_shard_size=max_bytes)
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].to(dtypes[name], copy=True).contiguous() for name in names}
        save_file(shard, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_object(folder / INDEX, index)


class Index(BaseModel):
    """`model.safetensors.index.json`: the file of each tensor."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[^\x00]+$")]] = {}


class Shards:
    """The tensors of a folder by name; a file is memory-mapped only while one of them is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index, single = folder / INDEX, folder / SINGLE
        if index.is_file():
            weight_map = read_as(Index, index).weight_map
            self.file_of = {name: folder / file for name, file in weight_map.items()}
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

    def n_bytes(self) -> int:
        """The size of all files, which can be opened."""
        n = 0
        for file in {*self.file_of.values()}:
            with _opened(file):
                n += file.stat().st_size
        return n

    def describe(self, name: str) -> tuple[torch.dtype, list[int]]:
        """Dtype and shape of a tensor that is there; UserError where it cannot be read."""
        with _opened(self.file_of[name]) as tensors:
            found = tensors.get_slice(name)
            dtype, shape = found.get_dtype(), found.get_shape()
        if dtype not in READABLE:
            kinds = ", ".join(READABLE)
            raise UserError(f"{self.file_of[name]}: {name} is {dtype}; {kinds} can be read")
        return READABLE[dtype], shape

    def rows(self, name: str, rows: slice) -> Tensor:
        """A copy of some rows of a tensor that is there."""
        with _opened(self.file_of[name]) as tensors:
            copy: Tensor = tensors.get_slice(name)[rows].clone()
        return copy


def read_state(shards: Shards, cfg: ModelConfig) -> dict[str, Tensor]:
    """A state dict for `Transformer(cfg)` in the dtypes of the files.

    Raises UserError naming a tensor that is missing, left over, of another shape or no copy.
    """
    with torch.device("meta"):
        wanted = Transformer(cfg).state_dict()
    plan = {name: parts(name, cfg) for name in _own_names(wanted, cfg)}
    named = {part.name for pieces in plan.values() for part in pieces}
    needed = {part.name for pieces in plan.values() for part in pieces if not part.copy}
    found = shards.file_of.keys()
    for names, what in ((found - named, "that are not used"), (needed - found, "missing")):
        if names:
            few = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
            raise UserError(f"{shards.folder}: tensors {what} ({len(names)}): {few}")
    state = {name: _assembled(shards, pieces, wanted[name]) for name, pieces in plan.items()}
    if cfg.tie_embeddings:
        state["lm_head.weight"] = state["embed.weight"]
    return state


def _assembled(shards: Shards, pieces: list[Part], wanted: Tensor) -> Tensor:
    first = pieces[0].name
    exact = ALWAYS_FLOAT32 in first
    pieces = [piece for piece in pieces if not piece.copy or piece.name in shards.file_of]
    for name, at, _ in pieces:  # `wanted` is on the meta device: nothing is allocated yet
        shape, there = [*wanted[at].shape], shards.describe(name)[1]
        if shape != there:
            raise UserError(f"{shards.folder}: {name} has shape {there}, not {shape}")
    ours = torch.empty(wanted.shape, dtype=wanted.dtype if exact else shards.describe(first)[0])
    for name, at, copy in pieces:
        place = ours[at]  # a view: DeepSeek's layout permutes no rows
        if (dtype := shards.describe(name)[0]) != ours.dtype and not exact:
            raise UserError(f"{shards.folder}: {name} is {dtype}, {first} {ours.dtype}")
        n_rows = max(1, BLOCK // place.shape[1:].numel())
        for start in range(0, len(place), n_rows):
            rows = slice(start, start + n_rows)
            block = shards.rows(name, rows)
            if not torch.isfinite(block).all():
                raise UserError(f"{shards.folder}: {name} holds values that are not finite")
            if not copy:
                place[rows] = block
            elif not torch.equal(place[rows], block):
                raise UserError(f"{shards.folder}: {name} is no copy of {first}")
    return ours


def _own_names(state: Mapping[str, Any], cfg: ModelConfig) -> list[str]:
    return [name for name in state if not (name == "lm_head.weight" and cfg.tie_embeddings)]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with open_regular(file), safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error})") from None
