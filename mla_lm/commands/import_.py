"""`python -m mla_lm import src=DIR out=DIR`: a DeepSeek-V3-style folder as a run at step 0.

What is written is a run folder, for `eval.py ckpt=`, `generate ckpt=` and `train.py init_from=`.
`data=text data.path=FILE`, and other words of the `data` group, say what it is to be evaluated on.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.config.cli import parse_options, require_path
from mla_lm.config.explain import key_of
from mla_lm.config.section import Name, PathName
from mla_lm.errors import UserError


class Options(BaseModel):
    """What is read, and where to it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    src: PathName = Field(description="a local folder of config.json and safetensors")
    out: PathName = Field(description="a folder, new or empty")
    tokenizer: PathName | None = Field(None, description="a tokenizer.json, where src has none")
    end_of_text: Name | None = Field(
        None, description="token between texts, where not the bos_token of src"
    )


def run(arguments: Sequence[str]) -> None:
    """Write the run folder and say how large the model is."""
    of_data = [word for word in arguments if key_of(word).partition(".")[0] == "data"]
    for word in of_data:
        if key_of(word).startswith("data.tokenizer"):
            raise UserError(f"{word}: the tokenizer is that of src, or tokenizer=FILE")
    options = parse_options(Options, [word for word in arguments if word not in of_data])
    require_path("src", options.src)

    from mla_lm.cost import count_parameters
    from mla_lm.interop.importing import import_folder

    cfg = import_folder(
        Path(options.src),
        Path(options.out),
        overrides=of_data,
        tokenizer=None if options.tokenizer is None else Path(options.tokenizer),
        end_of_text=options.end_of_text,
    )
    parameters = count_parameters(cfg.model)
    print(f"imported {options.src} to {options.out}: {parameters.total / 1e6:.2f}M parameters")
