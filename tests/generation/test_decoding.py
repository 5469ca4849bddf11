"""Decoding with caches against a slow decoder without: batches, ends, formats, seeds, refusals."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from mla_lm.generation import Decoder, Sampling, generate
from mla_lm.model import Transformer
from tests.conftest import each_attention, one_line
from tests.generation.conftest import (
    GREEDY,
    Ids,
    decode,
    greedy_by_hand,
    random_model,
    random_prompts,
)

CONTEXT = 32
RAGGED = (5, 1, 9, 14, 2)
each_ffn = pytest.mark.parametrize("ffn", [(), ("model/ffn=dense",)], ids=["moe", "dense"])


@each_attention
@each_ffn
def test_every_row_is_what_it_is_alone_without_a_cache(
    attention: tuple[str, ...], ffn: tuple[str, ...]
) -> None:
    """To `max_new_tokens` or one token past the context."""
    model = random_model(*attention, *ffn)
    assert model.cfg.max_seq_len == CONTEXT
    prompts = random_prompts((*RAGGED, CONTEXT - 3, CONTEXT, CONTEXT - 1), seed=2)
    got = decode(model, prompts, 8)
    assert got == [greedy_by_hand(model, prompt, 8) for prompt in prompts]
    assert [len(ids) for ids in got] == [8] * len(RAGGED) + [4, 1, 2]


def ends_early(model: Transformer, prompts: list[Ids], n_new: int) -> tuple[int, list[Ids]]:
    """An id that ends some rows at different steps and others not, and the rows cut at it."""
    free = [greedy_by_hand(model, prompt, n_new) for prompt in prompts]
    for stop in {i for ids in free for i in ids[1:]}:
        cut = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in free]
        if n_new in map(len, cut) and len({len(ids) for ids in cut}) > 2:
            return stop, cut
    raise AssertionError("no such id: choose other prompts")


def test_rows_that_end_leave_the_batch_and_change_no_other() -> None:
    model, prompts = random_model(vocab_size=11), random_prompts((6,) * 5, below=11, seed=5)
    stop, expected = ends_early(model, prompts, 12)
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert decode(model, prompts, 12, stop=stop) == expected
    hook.remove()
    assert sizes == [sum(len(ids) > step for ids in expected) for step in range(12)]
    got = generate(model, torch.tensor(prompts), max_new_tokens=12, temperature=0, stop=stop)
    for row, prompt, new in zip(got.tolist(), prompts, expected, strict=True):
        assert row == [*prompt, *new, *[stop] * (12 - len(new))]  # filled up


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    model, tokens = random_model(mtp_depth=2), torch.tensor(random_prompts((5, 5), seed=12))
    before = torch.get_rng_state()
    first, again, other = (
        generate(model, tokens, max_new_tokens=12, temperature=2.0, seed=seed, n_drafts=2)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[:, :5], tokens)
    greedy = [generate(model, tokens, max_new_tokens=4, temperature=0, seed=s) for s in (0, 1)]
    assert torch.equal(*greedy)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", 0.3), ("top_k", 1), ("top_p", 0.3), ("min_p", 0.3)]
)
def test_generate_hands_every_option_on(option: str, value: Any) -> None:
    model, tokens = random_model(), torch.tensor(random_prompts((5, 5, 5), seed=14))
    options: dict[str, Any] = {option: value}
    got = generate(model, tokens, max_new_tokens=9, seed=2, **options)
    expected = decode(model, tokens.tolist(), 9, seed=2, sampling=Sampling(**options))
    assert got[:, 5:].tolist() == expected
    assert expected != decode(model, tokens.tolist(), 9, seed=2, sampling=Sampling())
    assert (expected == decode(model, tokens.tolist(), 9)) == (option == "top_k")  # of 1: greedy


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_the_first_token_of_a_row_can_be_limited(temperature: float) -> None:
    """The masks are shorter than the vocabulary: ids beyond them are excluded."""
    model, prompts = random_model(), random_prompts((4, 2, 7), seed=15)
    allowed = [{5, 9}, {7}, set(range(250))]
    first = torch.tensor([[i in ids for i in range(250)] for ids in allowed])
    later = set()
    for seed in range(15):
        got = decode(model, prompts, 6, sampling=Sampling(temperature), seed=seed, first=first)
        assert all(ids[0] in row for ids, row in zip(got, allowed, strict=True))
        later |= {i for ids in got[:2] for i in ids[1:]}
    assert later - {5, 7, 9}


def test_a_model_in_training_mode_decodes_alike_and_trains_on() -> None:
    model, prompts = random_model(mtp_depth=2), random_prompts(RAGGED, seed=18)
    twin = deepcopy(model).train()
    assert decode(twin, prompts, 6, n_drafts=1) == decode(model, prompts, 6, n_drafts=1)
    assert twin.training
    twin(torch.tensor([prompts[0]])).logits.square().mean().backward()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "an empty prompt"),
        ([[1, 2], []], {}, "an empty prompt"),
        ([[1] * 3, [2] * 40], {}, "a prompt of 40 tokens exceeds model.max_seq_len=32"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ([[1]], {"n_drafts": 3}, "n_drafts=3: must be at most model.mtp_depth=2"),
        ([[1]], {"n_drafts": -1}, "n_drafts=-1: "),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_one_line(
    prompts: list[Ids], options: dict[str, Any], message: str
) -> None:
    options = {"max_new_tokens": 3, "sampling": GREEDY} | options
    said = one_line(lambda: Decoder(random_model(mtp_depth=2), prompts, **options))
    assert said.startswith(message)
