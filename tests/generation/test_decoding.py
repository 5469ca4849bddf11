"""Decoding with caches against a slow decoder without: batches, ends, formats, seeds."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch

from mla_lm.generation import Decoder, Sampling, generate
from mla_lm.model import Transformer
from tests.conftest import each_attention
from tests.generation.conftest import (
    GREEDY,
    Ids,
    collected,
    decode,
    greedy_by_hand,
    padded,
    random_model,
    random_prompts,
)

RAGGED = (5, 1, 9, 14, 2)
each_ffn = pytest.mark.parametrize("ffn", [(), ("model/ffn=dense",)], ids=["moe", "dense"])


@each_attention
@each_ffn
def test_greedy_is_the_argmax_at_every_step(
    attention: tuple[str, ...], ffn: tuple[str, ...]
) -> None:
    model = random_model(*attention, *ffn)
    for prompt in random_prompts((1, 7), seed=1):
        assert decode(model, [prompt], 9) == [greedy_by_hand(model, prompt, 9)]


@each_attention
def test_a_row_is_what_it_is_alone_whatever_the_others_are(attention: tuple[str, ...]) -> None:
    model = random_model(*attention)
    prompts = random_prompts(RAGGED, seed=2)
    assert decode(model, prompts, 8) == [greedy_by_hand(model, prompt, 8) for prompt in prompts]


@each_attention
def test_ways_through_the_cache_agree(attention: tuple[str, ...]) -> None:
    model = random_model(*attention)
    prompts = random_prompts(RAGGED, seed=3)
    free, latent, keys = (
        decode(model, prompts, 8, absorb=absorb) for absorb in (None, True, False)
    )
    assert free == latent == keys


def ends_early(model: Transformer, prompts: list[Ids], n_new: int) -> tuple[int, list[Ids]]:
    """An id that ends some rows at different steps and others not, and the rows cut at it."""
    free = [greedy_by_hand(model, prompt, n_new) for prompt in prompts]
    for stop in {i for ids in free for i in ids[1:]}:
        cut = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in free]
        if n_new in map(len, cut) and len({len(ids) for ids in cut}) > 2:
            return stop, cut
    raise AssertionError("no such id: choose other prompts")


def test_rows_that_end_are_left_out_of_the_batch_and_change_no_other() -> None:
    model, prompts = random_model(vocab_size=11), random_prompts(RAGGED, below=11, seed=4)
    stop, expected = ends_early(model, prompts, 12)
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    got = decode(model, prompts, 12, stop=stop)
    hook.remove()
    assert got == expected
    assert sizes == [sum(len(ids) > step for ids in expected) for step in range(12)]


def test_generate_fills_ended_rows_up_with_the_stop_id() -> None:
    model, prompts = random_model(vocab_size=11), random_prompts((6,) * 5, below=11, seed=5)
    stop, expected = ends_early(model, prompts, 12)
    got = generate(model, torch.tensor(prompts), max_new_tokens=12, temperature=0, stop=stop)
    assert got.dtype == torch.int64
    for row, prompt, new in zip(got.tolist(), prompts, expected, strict=True):
        assert row == [*prompt, *new, *[stop] * (12 - len(new))]


def test_generate_is_no_longer_than_its_longest_row() -> None:
    model, (prompt, *_) = random_model(), random_prompts((6,), seed=6)
    stop = greedy_by_hand(model, prompt, 12)[3]
    got = generate(model, torch.tensor([prompt]), max_new_tokens=12, temperature=0, stop=stop)
    assert got.tolist() == [[*prompt, *greedy_by_hand(model, prompt, 12, stop=stop)]]


def test_a_stop_id_in_the_prompt_ends_nothing() -> None:
    model, (prompt, *_) = random_model(), random_prompts((6,), seed=7)
    free = greedy_by_hand(model, prompt, 5)
    unseen = next(i for i in prompt if i not in free)
    assert decode(model, [prompt], 5, stop=unseen) == [free]


def test_finish_ends_a_row_and_no_other() -> None:
    model, prompts = random_model(), random_prompts(RAGGED, seed=8)
    free = [greedy_by_hand(model, prompt, 7) for prompt in prompts]
    decoder = Decoder(model, prompts, max_new_tokens=7, sampling=GREEDY)
    got: list[Ids] = [[] for _ in prompts]
    for step, new in enumerate(decoder, start=1):
        for row, ids in new.items():
            got[row] += ids
            if step == 2 and row in (0, 3):
                decoder.finish(row)
                decoder.finish(row)
    assert got == [ids[:2] if row in (0, 3) else ids for row, ids in enumerate(free)]


def test_a_row_can_be_finished_before_it_begins() -> None:
    model, prompts = random_model(), random_prompts((3, 4, 6), seed=20)
    first = torch.ones(3, 263, dtype=torch.bool)
    decoder = Decoder(model, prompts, max_new_tokens=4, sampling=GREEDY, first=first)
    decoder.finish(1)
    got: dict[int, Ids] = {}
    for new in decoder:
        got |= {row: got.get(row, []) + ids for row, ids in new.items()}
    assert got == {row: greedy_by_hand(model, prompts[row], 4) for row in (0, 2)}


def test_finishing_every_row_before_it_begins_emits_nothing() -> None:
    decoder = Decoder(random_model(), random_prompts((3, 4)), max_new_tokens=9, sampling=GREEDY)
    for row in (1, 0):
        decoder.finish(row)
    assert list(decoder) == []


def test_finishing_every_row_ends_the_decoding() -> None:
    model, prompts = random_model(), random_prompts((3, 4), seed=9)
    decoder = Decoder(model, prompts, max_new_tokens=9, sampling=GREEDY)
    n_steps = 0
    for new in decoder:
        n_steps += 1
        for row in new:
            decoder.finish(row)
    assert n_steps == 1


@pytest.mark.parametrize("n_new", [1, 2, 6])
def test_as_many_tokens_come_as_are_asked_for(n_new: int) -> None:
    model, prompts = random_model(), random_prompts(RAGGED, seed=10)
    assert [len(ids) for ids in decode(model, prompts, n_new)] == [n_new] * len(prompts)


def test_without_stop_every_id_is_as_any_other() -> None:
    model, (prompt, *_) = random_model(), random_prompts((4,), seed=11)
    tokens = generate(model, torch.tensor([prompt]), max_new_tokens=6, temperature=0)
    assert tokens.tolist() == [prompt + greedy_by_hand(model, prompt, 6)]


def test_the_seed_decides() -> None:
    model, tokens = random_model(), torch.tensor(random_prompts((5, 5), seed=12))
    first, again, other = (
        generate(model, tokens, max_new_tokens=12, temperature=2.0, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[:, :5], tokens)
    greedy = [generate(model, tokens, max_new_tokens=4, temperature=0, seed=s) for s in (0, 1)]
    assert torch.equal(*greedy)


def test_the_global_generator_is_left_alone() -> None:
    model = random_model(mtp_depth=2)
    before = torch.get_rng_state()
    decode(model, random_prompts((3, 6)), 6, sampling=Sampling(), n_drafts=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_best_one_of_k_is_greedy() -> None:
    model, prompts = random_model(), random_prompts(RAGGED, seed=13)
    one = decode(model, prompts, 9, sampling=Sampling(temperature=3.0, top_k=1))
    assert one == decode(model, prompts, 9)


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", 0.3), ("top_k", 3), ("top_p", 0.3), ("min_p", 0.3)]
)
def test_generate_hands_every_option_on(option: str, value: Any) -> None:
    model, tokens = random_model(), torch.tensor(random_prompts((5, 5, 5), seed=14))
    options: dict[str, Any] = {option: value}
    got = generate(model, tokens, max_new_tokens=9, seed=2, **options)
    sampling = Sampling()._replace(**options)
    expected = decode(model, tokens.tolist(), 9, seed=2, sampling=sampling)
    assert got[:, 5:].tolist() == expected != decode(model, tokens.tolist(), 9, seed=2)
    assert expected != decode(model, tokens.tolist(), 9, seed=2, sampling=Sampling())


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


def test_the_best_of_the_allowed_comes_first() -> None:
    model, (prompt, *_) = random_model(), random_prompts((6,), seed=16)
    with torch.no_grad():
        order = model(torch.tensor([prompt])).logits[0, -1].argsort(descending=True)
    first = torch.ones(1, 263, dtype=torch.bool)
    first[0, order[:3]] = False
    ((got, *_),) = decode(model, [prompt], 2, first=first)
    assert got == order[3]


@torch.no_grad()
def regret(model: Transformer, prompts: list[Ids], new: list[Ids]) -> float:
    """How far the logit of a new id is from the best one at worst, without a cache."""
    logits = model(padded([p + n for p, n in zip(prompts, new, strict=True)]), mtp=False).logits
    worst = 0.0
    for row, prompt, ids in zip(logits.float(), prompts, new, strict=True):
        seen = row[len(prompt) - 1 : len(prompt) - 1 + len(ids)]
        chosen = seen.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
        worst = max(worst, float((seen.amax(dim=-1) - chosen).max()))
    return worst


@pytest.mark.parametrize("autocast", [True, False])
@each_ffn
@each_attention
def test_bfloat16_chooses_the_best_up_to_its_precision(
    attention: tuple[str, ...], ffn: tuple[str, ...], autocast: bool
) -> None:
    model = deepcopy(random_model(*attention, *ffn, mtp_depth=2))
    model = model if autocast else model.bfloat16()
    prompts = random_prompts((5, 1, 9), seed=17)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for absorb, n_drafts in ((None, 0), (True, 1), (False, 2)):
            got = decode(model, prompts, 5, n_drafts=n_drafts, absorb=absorb)
            assert [len(ids) for ids in got] == [5, 5, 5]
            assert regret(model, prompts, got) < 0.1
        assert regret(model, prompts, [ids[::-1] for ids in got]) > 1


def test_a_model_in_training_mode_decodes_alike_and_stays_there() -> None:
    model, prompts = random_model(mtp_depth=2), random_prompts(RAGGED, seed=18)
    expected = decode(model, prompts, 6, n_drafts=1)
    twin = deepcopy(model).train()
    assert decode(twin, prompts, 6, n_drafts=1) == expected
    assert twin.training
    assert all(p.grad is None and p.requires_grad for p in twin.parameters())
    loss = twin(torch.tensor([prompts[0]])).logits.square().mean()
    loss.backward()
    assert math.isfinite(loss.item())


def test_weights_and_cache_hold_no_gradients() -> None:
    model, prompts = random_model(mtp_depth=1), random_prompts((4, 6), seed=19)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = Decoder(model, prompts, max_new_tokens=6, sampling=GREEDY, n_drafts=1)
    collected(decoder)
    assert decoder.drafter is not None
    caches = [decoder.cache, *decoder.drafter.caches]
    assert not any(t.requires_grad for c in caches for layer in c.layers for t in layer.tensors)
    assert not decoder.drafter.states.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
