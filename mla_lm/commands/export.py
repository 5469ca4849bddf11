"""`python -m mla_lm export ckpt=PATH out=DIR`: a folder that transformers, vLLM and lm_eval load.

`dtype=bfloat16` halves it; `license=mit` is said in its model card.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.cli import parse_options, require_path

Name = Annotated[str, Field(min_length=1)]


class ExportOptions(BaseModel):
    """`ckpt` is a checkpoint or a run folder; `out` must be new or empty."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ckpt: Name
    out: Name
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_shard_gb: Annotated[float, Field(gt=0)] = 5.0
    license: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "unknown"


def run(arguments: Sequence[str]) -> None:
    """Write the folder and say what runs it."""
    options = parse_options(ExportOptions, arguments)
    require_path("ckpt", options.ckpt)

    import torch

    from mla_lm.checkpoint import locate
    from mla_lm.interop.export import export

    path = locate(options.ckpt)
    name = export(
        path,
        Path(options.out),
        dtype=getattr(torch, options.dtype),
        max_shard_bytes=int(options.max_shard_gb * 1e9),
        licence=options.license,
    )
    print(f"exported {path} to {options.out}: {name}, {options.dtype}")
