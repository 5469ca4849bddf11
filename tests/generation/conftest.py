"""Small models that are decoded, one of them trained, and what a slow, cacheless decoder says."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from mla_lm.data import Tokenizer
from mla_lm.generation import Decoder, Sampling
from mla_lm.model import Transformer
from mla_lm.objective.losses import mtp_targets, next_token_loss
from tests.conftest import randomized, tiny_config
from tests.test_golden import structured_batches

END_OF_TEXT = "<|endoftext|>"
GREEDY = Sampling(temperature=0)
TRAINED_VOCAB = 67
Ids = list[int]


@cache
def random_model(*overrides: str, **keys: Any) -> Transformer:
    """`keys` of `model` are set past Hydra, which is slow. Shared: leave it as it is."""
    torch.manual_seed(0)
    cfg = tiny_config("model.n_layers=2", *overrides).model
    return randomized(Transformer(cfg.model_copy(update=keys))).eval()


@pytest.fixture(scope="session")
def trained() -> Transformer:
    """Three depths that mostly guess right where rows count upwards, and sometimes elsewhere."""
    torch.manual_seed(0)
    cfg = tiny_config("model.n_layers=2", "model.mtp_depth=3", "model/ffn=dense").model
    model = Transformer(cfg.model_copy(update={"vocab_size": TRAINED_VOCAB}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), fused=True)
    batches = structured_batches(TRAINED_VOCAB, batch=6, length=20)
    for batch, _ in zip(batches, range(110), strict=False):
        out = model(batch[:, :-1])
        loss = next_token_loss(out.logits, batch[:, 1:])
        for k, state in enumerate(out.mtp, start=1):
            loss = loss + 0.3 * next_token_loss(model.lm_head(state), mtp_targets(batch, k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def random_prompts(lengths: Sequence[int], *, below: int = 263, seed: int = 0) -> list[Ids]:
    rng = random.Random(seed)
    return [[rng.randrange(below) for _ in range(length)] for length in lengths]


def padded(texts: Sequence[Ids]) -> Tensor:
    """Rows for a pass without a cache; what stands behind a text changes nothing before it."""
    width = max(map(len, texts))
    return torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])


def counting_prompts(lengths: Sequence[int], *, seed: int = 0) -> list[Ids]:
    """What `trained` was trained on."""
    rng = random.Random(seed)
    starts = [(rng.randrange(61), rng.randint(1, 3)) for _ in lengths]
    return [
        [(first + step * i) % 61 for i in range(length)]
        for (first, step), length in zip(starts, lengths, strict=True)
    ]


@torch.no_grad()
def greedy_by_hand(model: Transformer, prompt: Ids, n_new: int, *, stop: int | None = None) -> Ids:
    """The new ids of one prompt: argmax after argmax, without a cache, to the context's end."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + n_new, model.cfg.max_seq_len + 1):
        ids.append(int(model(torch.tensor([ids]), mtp=False).logits[0, -1].argmax()))
        if ids[-1] == stop:
            break
    return ids[len(prompt) :]


def decode(model: Transformer, prompts: Sequence[Ids], n_new: int, **options: Any) -> list[Ids]:
    """The new ids of each row; greedy unless told otherwise."""
    options = {"sampling": GREEDY} | options
    return Decoder(model, prompts, max_new_tokens=n_new, **options).run()


def chi_square(counts: Tensor, shares: Tensor) -> float:
    """Probability of counts at least as far from `shares` as these, by Pearson's test.

    Outcomes expected fewer than five times count as one, as the test asks for.
    """
    counts, shares = counts.double(), shares.double() / shares.double().sum()
    expected = shares * counts.sum()
    assert not counts[shares == 0].any(), "what cannot come has come"
    rare = expected < 5
    counts = torch.cat((counts[~rare], counts[rare].sum().view(1)))
    expected = torch.cat((expected[~rare], expected[rare].sum().view(1)))
    return float(scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    text = "def f(x):\n    return naïve + 終 🙂 # the word of a word\n" * 20
    return Tokenizer.train([text], vocab_size=300, end_of_text=END_OF_TEXT)


@cache
def text_model(*overrides: str) -> Transformer:
    """For `tokenizer`, with ids beyond its vocabulary."""
    return random_model(*overrides, vocab_size=320)
