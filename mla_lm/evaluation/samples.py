"""Parts `code` and `speculation`: what a model generates.

`code/parsed` is the share of sampled texts that Python can parse; `mtp/tokens_per_forward` and
`mtp/drafts_kept_K` are those of greedy self-speculation with the MTP modules.
"""

import ast
import warnings
from collections.abc import Sequence

from mla_lm.config import EvalConfig
from mla_lm.data.loader import Stream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.evaluation.scoring import with_stderr
from mla_lm.evaluation.subject import Subject
from mla_lm.generation import Completion, Decoder, Sampling
from mla_lm.model import Transformer

BEGINNINGS = ("def ", "class ", "import ", "from ", "if ", "for ", "with ", "x = ")
N_EACH = 8  # samples per beginning
PROMPT, NEW = 64, 64  # tokens
N_PROMPTS = 64


def code(subject: Subject, cfg: EvalConfig) -> dict[str, float]:
    """Part `code`."""
    return parsed_share(subject.model, subject.tokenizer, seed=cfg.seed)


def speculation(subject: Subject, cfg: EvalConfig) -> dict[str, float | str]:
    """Part `speculation`; UserError for a model without MTP modules."""
    if not subject.model.cfg.mtp_depth:
        raise UserError(f"parts=speculation: {subject.path} has no MTP module to draft with")
    data = subject.data()
    return {**draft(subject.model, data.val), "val/sha256": data.val_sha256}


def parsed_share(model: Transformer, tokenizer: Tokenizer, *, seed: int) -> dict[str, float]:
    """`code/parsed`: of sampled texts without their last, incomplete line."""
    completion = Completion(
        model,
        tokenizer,
        list(BEGINNINGS) * N_EACH,
        max_new_tokens=min(2 * NEW, model.cfg.max_seq_len - 8),
        sampling=Sampling(temperature=0.8, top_k=50),
        seed=seed,
    )
    texts = list(completion.prompts)
    for row, piece in completion:
        texts[row] += piece
    parsed = with_stderr("code/parsed", [parses(text) for text in texts])
    return parsed | {"code/n_samples": len(texts)}


def parses(text: str) -> bool:
    """Whether the complete lines of a text, at least one, are a Python module."""
    lines = text[: text.rfind("\n") + 1]
    try:
        with warnings.catch_warnings(action="ignore"):  # of strange escapes
            return bool(ast.parse(lines).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def draft(model: Transformer, ids: Stream) -> dict[str, float]:
    """Tokens per forward pass, and share of drafts kept by depth, after prompts from a stream."""
    length = min(PROMPT, model.cfg.max_seq_len // 2)
    prompts = spread(ids, length=length)
    decoder = Decoder(
        model,
        prompts,
        max_new_tokens=min(NEW, model.cfg.max_seq_len - length),
        sampling=Sampling(temperature=0),
        n_drafts=model.cfg.mtp_depth,
    )
    for _ in decoder:
        pass
    counts = decoder.counts
    accepted = {f"mtp/drafts_kept_{k}": share for k, share in enumerate(counts.acceptance, start=1)}
    return {"mtp/tokens_per_forward": counts.tokens_per_step, **accepted}


def spread(ids: Stream, *, length: int) -> list[Sequence[int]]:
    """Up to `N_PROMPTS` stretches of a stream, evenly spaced."""
    room = max(0, len(ids) - length)
    n = min(N_PROMPTS, 1 + room // length)
    return [ids[room * i // n : room * i // n + length].tolist() for i in range(n)]
