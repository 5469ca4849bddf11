"""`python -m mla_lm generate ckpt=PATH prompt="def "`: continue a prompt.

`prompt=@FILE` reads the prompt from a file, `prompt=-` from standard input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.cli import parse_options
from mla_lm.errors import UserError


class GenerateOptions(BaseModel):
    """Temperature 0 is greedy; `top_k=0` samples from the whole vocabulary."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ckpt: Annotated[str, Field(min_length=1)]
    prompt: str
    max_new_tokens: Annotated[int, Field(gt=0)] = 128
    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_k: Annotated[int, Field(ge=0)] = 50
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def run(arguments: Sequence[str]) -> None:
    """Print the prompt and its continuation."""
    options = parse_options(GenerateOptions, arguments)
    prompt = _read_prompt(options.prompt)

    from mla_lm.checkpoint import load_checkpoint
    from mla_lm.generation import complete
    from mla_lm.machine import accelerator_type

    model, _, tokenizer = load_checkpoint(options.ckpt)
    text = complete(
        model.to(accelerator_type()),
        tokenizer,
        prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k or None,
        seed=options.seed,
    )
    print(text)


def _read_prompt(prompt: str) -> str:
    try:
        if prompt == "-":
            return sys.stdin.buffer.read().decode()
        if prompt.startswith("@"):
            return Path(prompt[1:]).read_text(encoding="utf-8")
        return prompt.encode().decode()
    except (OSError, UnicodeError) as error:
        raise UserError(f"prompt={prompt!r}: {error}") from None
