"""`python -m mla_lm generate ckpt=PATH prompt="def "`: continue prompts.

`prompt=@FILE` reads a prompt from a file, `prompt=-` from standard input. Several `prompt=` are
decoded as one batch; without any the command asks for prompts. `stop=TEXT` may be repeated.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.config.cli import parse_options, require_path
from mla_lm.config.section import Name, PathName
from mla_lm.errors import UserError, raw_output

if TYPE_CHECKING:
    from mla_lm.data.tokenizer import Tokenizer
    from mla_lm.model import Transformer

LONGEST_PROMPT = 2**22  # bytes: more than any context holds


class Options(BaseModel):
    """Prompts, sampling, and how the model runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ckpt: PathName = Field(description="a checkpoint file or a run folder")
    prompt: tuple[str, ...] = Field((), description="TEXT, @FILE or - for standard input")
    stop: tuple[Name, ...] = Field((), description="stop string, not printed")
    max_new_tokens: int = Field(128, gt=0, description="tokens per prompt")
    temperature: float = Field(0.6, ge=0, description="0: greedy")
    top_k: int = Field(50, ge=0, description="top-k (0: off)")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="nucleus (top-p): smallest set of tokens with cumulative probability p",
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="min-p: drop tokens below min_p x the top probability"
    )
    n_drafts: int = Field(0, ge=0, description="tokens per step drafted by the MTP modules")
    context: int | None = Field(
        None, gt=0, description="context in tokens; YaRN beyond the trained one"
    )
    precision: Literal["auto", "32-true", "bf16-true"] = Field(
        "auto", description="auto | 32-true | bf16-true"
    )
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = Field(
        "auto", description="auto | cpu | gpu (CUDA) | mps (Apple)"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="sampling seed")


def run(arguments: Sequence[str]) -> None:
    """Print the prompts with their continuations; a single one is streamed."""
    options = parse_options(Options, arguments)
    prompts = [_read_prompt(prompt) for prompt in options.prompt]
    require_path("ckpt", options.ckpt)

    import torch

    from mla_lm.checkpoint.find import load_checkpoint
    from mla_lm.machine import accelerator_type, resolve_precision

    if isinstance(raw := raw_output(), io.TextIOWrapper):
        raw.reconfigure(encoding="utf-8", errors="replace")
    model, _, tokenizer = load_checkpoint(options.ckpt, context=options.context)
    device = accelerator_type(options.accelerator, key="accelerator")
    in_bf16 = options.precision == "bf16-true" or (
        options.precision == "auto" and resolve_precision("auto", device) == "bf16-mixed"
    )
    model = model.to(device, torch.bfloat16 if in_bf16 else torch.float32)
    if prompts:
        _complete(model, tokenizer, prompts, options)
    while not prompts:
        try:
            prompt = input("> ").removeprefix("\ufeff")  # a byte-order mark
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
    model: "Transformer", tokenizer: "Tokenizer", prompts: list[str], options: Options
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
    )
    texts = list(completion.prompts)
    raw = raw_output()
    out = sys.stdout if raw.isatty() else raw  # to a file as it is
    if len(texts) == 1:
        print(texts[0], end="", file=out, flush=True)
        try:
            for _, piece in completion:
                print(piece, end="", file=out, flush=True)
        finally:  # what else is said begins on a line of its own
            print(file=out)
    else:
        for row, piece in completion:
            texts[row] += piece
        print(*texts, sep=f"\n{'-' * 40}\n", file=out)
    counts = completion.decoder.counts
    if options.n_drafts:
        shares = ", ".join(f"{share:.2f}" for share in counts.acceptance)
        print(
            f"{counts.tokens_per_step:.2f} tokens per step; drafts accepted, by depth: {shares}",
            file=sys.stderr,
        )


def _read_prompt(prompt: str) -> str:
    try:
        if prompt == "-":
            content = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
        elif prompt.startswith("@"):
            with Path(prompt[1:]).expanduser().open("rb") as file:
                content = file.read(LONGEST_PROMPT + 1)
        else:
            content = prompt.encode()
        if len(content) > LONGEST_PROMPT:
            raise UserError(f"prompt={prompt[:80]}: longer than {LONGEST_PROMPT:,} bytes")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UserError(f"prompt={prompt!r}: {error}") from None
