"""Where decoding ends or is refused: the context, empty prompts, impossible options."""

import math
from typing import Any

import pytest
import torch

from mla_lm.errors import UserError
from mla_lm.generation import Decoder, Sampling, generate
from tests.conftest import each_attention
from tests.generation.conftest import (
    decode,
    greedy_by_hand,
    random_model,
    random_prompts,
    refusal,
)

CONTEXT = 32


@each_attention
@pytest.mark.parametrize("length", [27, 31, 32])
def test_a_row_ends_one_token_past_the_context(attention: tuple[str, ...], length: int) -> None:
    model = random_model(*attention)
    assert model.cfg.max_seq_len == CONTEXT
    (prompt,) = random_prompts((length,))
    got = decode(model, [prompt], 20)
    assert len(prompt) + len(got[0]) == CONTEXT + 1
    assert got == [greedy_by_hand(model, prompt, 20)]


@each_attention
@pytest.mark.parametrize("n_new", [3, 50])
def test_each_row_of_a_batch_ends_at_its_own_length(attention: tuple[str, ...], n_new: int) -> None:
    model = random_model(*attention)
    lengths = (29, 2, 32, 31, 17, 28)
    prompts = random_prompts(lengths, seed=1)
    got = decode(model, prompts, n_new)
    assert [len(ids) for ids in got] == [min(n_new, CONTEXT + 1 - length) for length in lengths]
    assert got == [greedy_by_hand(model, prompt, n_new) for prompt in prompts]


def test_generate_ends_one_token_past_the_context() -> None:
    model, tokens = random_model(), torch.tensor(random_prompts((30, 30), seed=2))
    assert generate(model, tokens, max_new_tokens=9).shape == (2, CONTEXT + 1)


def test_no_more_is_reserved_than_the_rows_can_need() -> None:
    """A short continuation of a model with a long context takes little memory."""
    model, prompts = random_model(), random_prompts((5, 9), seed=3)
    decoder = Decoder(model, prompts, max_new_tokens=4, sampling=Sampling())
    assert decoder.cache.capacity <= 13


@pytest.mark.parametrize("lengths", [(33,), (3, 40, 2)])
def test_a_prompt_longer_than_the_context_is_refused(lengths: tuple[int, ...]) -> None:
    said = refusal(random_model(), random_prompts(lengths))
    assert said == f"a prompt of {max(lengths)} tokens exceeds model.max_seq_len=32"


@pytest.mark.parametrize("lengths", [(), (0,), (3, 0), (0, 40)])
def test_an_empty_prompt_is_refused(lengths: tuple[int, ...]) -> None:
    assert "empty prompt" in refusal(random_model(), random_prompts(lengths))


@pytest.mark.parametrize("shape", [(1, 0), (0, 3)])
def test_generate_refuses_an_empty_prompt(shape: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="empty prompt"):
        generate(random_model(), torch.zeros(shape, dtype=torch.int64), max_new_tokens=1)


@pytest.mark.parametrize("n_new", [0, -2])
def test_no_new_tokens_are_refused(n_new: int) -> None:
    said = refusal(random_model(), [[1, 2]], max_new_tokens=n_new)
    assert said.startswith(f"max_new_tokens={n_new}: must be at least 1")


@pytest.mark.parametrize(("depth", "n_drafts"), [(0, 1), (1, 2), (2, 3), (2, -1)])
def test_more_drafts_than_the_model_has_depths_are_refused(depth: int, n_drafts: int) -> None:
    model = random_model(mtp_depth=depth)
    said = refusal(model, [[1, 2]], n_drafts=n_drafts)
    assert said.startswith(f"n_drafts={n_drafts}: ")
    assert f"mtp_depth={depth}" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_p", 0.0),
        ("min_p", 2.0),
    ],
)
def test_impossible_sampling_is_refused(name: str, value: Any) -> None:
    wrong = {name: value}
    said = refusal(random_model(), [[1, 2]], sampling=Sampling()._replace(**wrong))
    assert said.startswith(f"{name}={value}: must be ")
    with pytest.raises(UserError) as caught:
        generate(random_model(), torch.ones(1, 2).long(), max_new_tokens=1, **wrong)
    assert str(caught.value) == said
