"""`python -m mla_lm generate ckpt=PATH prompt="def "`: continue prompts.

`prompt=@FILE` reads a prompt from a file, `prompt=-` from standard input; several `prompt=` are
continued as one batch, and without one the command asks for prompts. `stop=TEXT`, also several
times, ends a text before TEXT.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.cli import parse_options, require_path
from mla_lm.errors import UserError

if TYPE_CHECKING:
    from mla_lm.data.tokenizer import Tokenizer
    from mla_lm.model import Transformer

Size = Annotated[int, Field(gt=0)]
Strings = tuple[Annotated[str, Field(min_length=1)], ...]


class GenerateOptions(BaseModel):
    """Temperature 0 is greedy; `top_k=0` samples from the whole vocabulary.

    `n_drafts` tokens a step are proposed by the MTP modules. `context` beyond the tokens a row of
    the training had stretches the positions by YaRN. `graph=true` replays the passes behind the
    prompts as a CUDA graph.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ckpt: Annotated[str, Field(min_length=1)]
    prompt: tuple[str, ...] = ()
    stop: Strings = ()
    max_new_tokens: Size = 128
    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_k: Annotated[int, Field(ge=0)] = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    n_drafts: Annotated[int, Field(ge=0)] = 0
    context: Size | None = None
    precision: Literal["auto", "32-true", "bf16-true"] = "auto"
    graph: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def run(arguments: Sequence[str]) -> None:
    """Print the prompts and their continuations, one prompt's as it grows."""
    options = parse_options(GenerateOptions, arguments)
    prompts = [_read_prompt(prompt) for prompt in options.prompt]
    require_path("ckpt", options.ckpt)

    import torch

    from mla_lm.checkpoint import load_checkpoint
    from mla_lm.machine import accelerator_type, resolve_precision

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    model, _, tokenizer = load_checkpoint(options.ckpt, context=options.context)
    device = accelerator_type()
    in_bf16 = options.precision == "bf16-true" or (
        options.precision == "auto" and resolve_precision("auto", device) == "bf16-mixed"
    )
    model = model.to(device, torch.bfloat16 if in_bf16 else torch.float32)
    if prompts:
        _complete(model, tokenizer, prompts, options)
    while not prompts:
        try:
            prompt = input("> ")
            prompt.encode()
        except EOFError:
            return
        except UnicodeError as error:
            raise UserError(f"standard input: {error}") from None
        try:
            _complete(model, tokenizer, [prompt], options)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _complete(
    model: "Transformer", tokenizer: "Tokenizer", prompts: list[str], options: GenerateOptions
) -> None:
    from mla_lm.generation import Completion, Sampling

    completion = Completion(
        model,
        tokenizer,
        prompts,
        max_new_tokens=options.max_new_tokens,
        sampling=Sampling(options.temperature, options.top_k or None, options.top_p, options.min_p),
        stops=options.stop,
        n_drafts=options.n_drafts,
        seed=options.seed,
        graph=options.graph,
    )
    texts = list(completion.prompts)
    if len(texts) == 1:
        print(texts[0], end="", flush=True)
        for _, piece in completion:
            print(piece, end="", flush=True)
        print()
    else:
        for row, piece in completion:
            texts[row] += piece
        print(*texts, sep=f"\n{'-' * 40}\n")
    counts = completion.decoder.counts
    if options.n_drafts:
        shares = ", ".join(f"{share:.2f}" for share in counts.acceptance)
        print(
            f"{counts.tokens_per_step:.2f} tokens a step; drafts accepted, by depth: {shares}",
            file=sys.stderr,
        )


def _read_prompt(prompt: str) -> str:
    try:
        if prompt == "-":
            return sys.stdin.buffer.read().decode()
        if prompt.startswith("@"):
            return Path(prompt[1:]).read_text(encoding="utf-8")
        return prompt.encode().decode()
    except (OSError, UnicodeError) as error:
        raise UserError(f"prompt={prompt!r}: {error}") from None
