"""`python -m mla_lm export ckpt=PATH out=DIR`: a folder for transformers, vLLM and lm_eval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.config.cli import parse_options, require_path
from mla_lm.config.section import PathName


class Options(BaseModel):
    """What to export, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ckpt: PathName = Field(description="a checkpoint file or a run folder")
    out: PathName = Field(description="new or empty folder")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="float32 | bfloat16")
    max_shard_gb: float = Field(5.0, gt=0, description="maximum size of a weight file in GB")
    license: str = Field("unknown", pattern=r"^[\w.-]+$", description="license in the model card")


def run(arguments: Sequence[str]) -> None:
    """Write the folder and print the class that runs it."""
    options = parse_options(Options, arguments)
    require_path("ckpt", options.ckpt)

    import torch

    from mla_lm.checkpoint.find import locate
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
