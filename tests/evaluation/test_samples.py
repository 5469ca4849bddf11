"""Samples that parse, drafts that carry, and what a model costs."""

import numpy as np
import pytest
import torch

from mla_lm.cost import cache_elements_per_token
from mla_lm.evaluation.samples import code, draft, parses, profile
from mla_lm.model import Transformer
from tests.conftest import each_attention
from tests.generation.conftest import (  # the fixture too
    counting_prompts,
    random_model,
    trained,  # noqa: F401
)
from tests.interop.random_runs import byte_tokenizer


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("def f(x):\n    return x\n", True),
        ("x = 1\ny = (", True),  # the last line is not whole
        ("x = (\n", False),
        ("x = 1", False),
        ("\n\n", False),
        ("# nothing\n", False),
        ("x = '\\d'\n", True),
        ("x = \x00\n", False),
        ("(" * 500 + "\n", False),
    ],
)
def test_what_python_accepts(text: str, whole: bool) -> None:
    assert parses(text) == whole


def test_samples_are_those_of_the_seed() -> None:
    model, tokenizer = random_model("data.seq_len=64"), byte_tokenizer()
    one, again = (code(model, tokenizer, seed=3) for _ in range(2))
    assert one == again
    assert one["code/n_samples"] == 64
    assert 0 <= one["code/parsed"] <= 1


def test_drafts_of_a_model_that_guesses_right_carry_far(
    trained: Transformer,  # noqa: F811
) -> None:
    ids = np.array([i for prompt in counting_prompts([40] * 20) for i in prompt])
    found = draft(trained, ids)
    assert found["mtp/tokens_per_forward"] > 2
    assert found["mtp/drafts_kept_1"] > 0.5


@each_attention
def test_the_cache_is_that_of_the_formula(attention: tuple[str, ...]) -> None:
    model = random_model(*attention)
    found = profile(model)
    assert found["cache/bytes_per_token"] == 4 * cache_elements_per_token(model.cfg)
    speeds = {name: value for name, value in found.items() if name.startswith(("pre", "dec"))}
    assert len(speeds) == 2 * 2 * 2  # of 8 and of 16 tokens
    assert all(value > 0 for value in speeds.values())
    assert torch.is_grad_enabled()
