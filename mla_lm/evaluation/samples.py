"""Parts `code`, `speculation` and `profile`: what a model generates, and how fast."""

import ast
import statistics
import time
import warnings

import torch

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
N_PROMPTS, PROMPT, NEW = 64, 64, 64  # of speculation; tokens
BATCHES, DECODED, ROUNDS = (1, 8), 16, 3  # of profile


def code(model: Transformer, tokenizer: Tokenizer, *, seed: int) -> dict[str, float]:
    """`code/parsed`: share of sampled texts that Python parses without their incomplete line."""
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


def speculation(subject: Subject, _: EvalConfig) -> dict[str, float | str]:
    """Greedy self-speculation after prompts of the validation split; UserError without MTP."""
    if not subject.model.cfg.mtp_depth:
        raise UserError(f"parts=speculation: {subject.path} has no MTP module to draft with")
    data = subject.data()
    return {**draft(subject.model, data.val), "val/sha256": data.val_sha256}


def draft(model: Transformer, ids: Stream) -> dict[str, float]:
    """Tokens per forward pass, and share of drafts kept by depth, after prompts from a stream."""
    length = min(PROMPT, model.cfg.max_seq_len // 2)
    room = max(0, len(ids) - length)
    n = min(N_PROMPTS, 1 + room // length)
    decoder = Decoder(
        model,
        [ids[room * i // n : room * i // n + length].tolist() for i in range(n)],
        max_new_tokens=min(NEW, model.cfg.max_seq_len - length),
        sampling=Sampling(temperature=0),
        n_drafts=model.cfg.mtp_depth,
    )
    decoder.run()
    counts = decoder.counts
    accepted = {f"mtp/drafts_kept_{k}": share for k, share in enumerate(counts.acceptance, start=1)}
    return {"mtp/tokens_per_forward": counts.tokens_per_step, **accepted}


@torch.no_grad()
def profile(model: Transformer) -> dict[str, float]:
    """`prefill/CONTEXT/BATCH` and `decode/CONTEXT/BATCH`, median tokens per second.

    `cache/bytes_per_token` is measured, not computed.
    """
    longest = model.cfg.max_seq_len
    contexts = sorted({max(1, longest // 4), max(1, longest // 2), max(1, longest - DECODED)})
    n_new = min(DECODED, longest - contexts[-1])
    metrics = {"cache/bytes_per_token": model.new_cache(1, longest).n_bytes / longest}
    for context in contexts:
        for batch in BATCHES:
            rounds = [_seconds(model, context, batch, n_new) for _ in range(ROUNDS)]
            prefill, decode = map(statistics.median, zip(*rounds, strict=True))
            metrics[f"prefill/{context}/{batch}"] = batch * context / prefill
            if n_new:
                metrics[f"decode/{context}/{batch}"] = batch * n_new / decode
    return metrics


def _seconds(model: Transformer, context: int, batch: int, n_new: int) -> tuple[float, float]:
    """Of prefill, and of decoding `n_new` tokens."""
    device = model.embed.weight.device
    tokens = torch.randint(model.cfg.vocab_size, (batch, context), device=device)
    cache = model.new_cache(batch, context + n_new)

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    started = now()
    hidden = model(tokens, cache=cache, logits=False).hidden[:, -1:]
    read = now()
    for _ in range(n_new):
        token = model.lm_head(hidden).argmax(-1)
        hidden = model(token, cache=cache, logits=False).hidden
    return read - started, now() - read
