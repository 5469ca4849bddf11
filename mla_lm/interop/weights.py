"""Tensors between our state dict and a folder of safetensors shards, each used exactly once.

Importing holds some rows of one foreign tensor at a time, besides the model.
"""

import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mla_lm.config import ModelConfig
from mla_lm.errors import UserError
from mla_lm.interop.layout import HEAD, Part, parts
from mla_lm.model import Transformer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READABLE = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
BLOCK = 2**20  # numbers that are read at once
KEPT = "e_score_correction_bias"  # in float32, always


def to_hugging_face(state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """The tensors of the files, by name, of a state that fits; most share memory with it."""
    tensors: dict[str, Tensor] = {}
    for name in _own_names(state, cfg):
        used = 0
        for part in parts(name, cfg):
            if part.name == HEAD and part.copy:
                continue
            assert part.name not in tensors, part.name
            tensors[part.name] = state[name][part.at]
            used += 0 if part.copy else tensors[part.name].numel()
        assert used == state[name].numel(), f"{used} of {state[name].numel()} numbers of {name}"
    return tensors


def write_shards(
    tensors: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype, max_bytes: int
) -> None:
    """Write `tensors` into as few files as `max_bytes` allows, and an index if there are several.

    Matrices as `dtype`; the biases of gates stay float32.
    """
    dtypes = {name: t.dtype if KEPT in name else dtype for name, t in tensors.items()}
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
    """The tensors of a folder, read one by one; a file is mapped only while one is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file_of: dict[str, Path] = {}
        for name, file in self._names():
            if name in self.file_of:
                raise UserError(f"{file}: {name} is in {self.file_of[name]} too")
            self.file_of[name] = file

    def _names(self) -> Iterator[tuple[str, Path]]:
        single, index = self.folder / SINGLE, self.folder / INDEX
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{index}: holds no weight_map")
            for file in sorted({str(file) for file in weight_map.values()}):
                if Path(file).name != file:
                    raise UserError(f"{index}: {file} is not in this folder")
                yield from ((name, self.folder / file) for name in self._in(self.folder / file))
        elif single.is_file():
            yield from ((name, single) for name in self._in(single))
        elif pickled := sorted(self.folder.glob("*.bin")):
            raise UserError(f"{pickled[0]}: pickle is not read; save the model as safetensors")
        else:
            raise UserError(f"{self.folder}: neither {SINGLE} nor {INDEX}")

    def _in(self, file: Path) -> list[str]:
        with _opened(file) as tensors:
            return list(tensors.keys())

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
        """Copies of rows of a tensor that is there, each with the number of its first row.

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
                yield first, tensors.get_slice(name)[first : first + n_rows].clone()


def read_state(shards: Shards, cfg: ModelConfig) -> dict[str, Tensor]:
    """A state dict for `Transformer(cfg)` in the types of the files.

    Raises UserError naming a tensor that is missing, left over, of another shape or no copy.
    """
    wanted = _empty_state(cfg)
    plan = {name: parts(name, cfg) for name in _own_names(wanted, cfg)}
    copy_of = {part.name: part.copy for found in plan.values() for part in found}
    optional = {name for name, copy in copy_of.items() if copy}
    _require_same(shards.file_of.keys() - optional, copy_of.keys() - optional, shards.folder)
    state = {name: _assembled(shards, found, wanted[name]) for name, found in plan.items()}
    if cfg.tie_embeddings:
        state["lm_head.weight"] = state["embed.weight"]
    return state


def require_state(state: Mapping[str, Tensor], cfg: ModelConfig, *, where: Path) -> None:
    """Raise UserError unless `state` is a state dict of `Transformer(cfg)`."""
    wanted = _empty_state(cfg)
    _require_same(state.keys(), wanted.keys(), where)
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(wanted[name].shape)}"
            raise UserError(f"{where}: {name} has shape {shapes}")


def _assembled(shards: Shards, found: list[Part], wanted: Tensor) -> Tensor:
    first = found[0]
    dtype = wanted.dtype if KEPT in first.name else shards.dtype(first.name)
    ours = torch.empty(wanted.shape, dtype=dtype)
    for part in found:
        if part.copy and part.name not in shards.file_of:
            continue
        if (theirs := shards.dtype(part.name)) != dtype and KEPT not in part.name:
            raise UserError(f"{shards.folder}: {part.name} is {theirs}, {first.name} {dtype}")
        place = ours[part.at]  # a view: only heads whose halves are rotated are not
        for row, block in shards.blocks(part.name, place.shape):
            rows = place[row : row + len(block)]
            if not part.copy:
                rows.copy_(block)
            elif not torch.equal(rows, block):
                raise UserError(f"{shards.folder}: {part.name} is no copy of {first.name}")
    return ours


def _empty_state(cfg: ModelConfig) -> dict[str, Tensor]:
    """Names, shapes and types without numbers."""
    with torch.device("meta"):
        return Transformer(cfg).state_dict()


def _require_same(found: Set[str], wanted: Set[str], where: Path) -> None:
    for names, what in ((found - wanted, "that are not used"), (wanted - found, "missing")):
        if names:
            few = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
            raise UserError(f"{where}: tensors {what} ({len(names)}): {few}")


def _own_names(state: Mapping[str, Any], cfg: ModelConfig) -> list[str]:
    return [name for name in state if not (name == "lm_head.weight" and cfg.tie_embeddings)]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
        return content
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except Exception as error:  # the library has several
        raise UserError(f"{file}: no safetensors file ({error})") from None
