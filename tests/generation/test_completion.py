"""Prompts to texts: batches, spaces at the end, stop strings, ids of the padded vocabulary."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mla_lm.data import Tokenizer
from mla_lm.generation import Completion
from mla_lm.model import Transformer
from tests.generation.conftest import GREEDY, Ids, decode, text_model

PROMPTS = ["def f(x):", "", "naïve 終", "the word of a word"]


def complete(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], **options: Any
) -> tuple[list[str], Completion]:
    """The new text of each prompt, put together from the pieces."""
    completion = Completion(
        model, tokenizer, prompts, **{"max_new_tokens": 8, "sampling": GREEDY, **options}
    )
    texts = [""] * len(prompts)
    for row, piece in completion:
        texts[row] += piece
    return texts, completion


def new_ids(model: Transformer, tokenizer: Tokenizer, prompt: str) -> Ids:
    """What the model says to a prompt, the end of a text excluded."""
    ids, allowed = tokenizer.encode_prompt(prompt)
    first = torch.from_numpy(allowed[None])
    (new,) = decode(model, [ids], 8, first=first, stop=tokenizer.end_of_text)
    return new


def text_of(tokenizer: Tokenizer, ids: Ids) -> str:
    return tokenizer.decode([i for i in ids if i < tokenizer.vocab_size])


@pytest.mark.parametrize("n_drafts", [0, 1])
def test_each_prompt_gets_what_it_gets_alone(tokenizer: Tokenizer, n_drafts: int) -> None:
    model = text_model()
    texts, completion = complete(model, tokenizer, PROMPTS, n_drafts=n_drafts)
    assert texts == [text_of(tokenizer, new_ids(model, tokenizer, p)) for p in PROMPTS]
    assert completion.prompts == PROMPTS
    assert any(texts)


@pytest.mark.parametrize("prompt", ["def ", " ", "a  "])
def test_a_space_at_the_end_of_a_prompt_belongs_to_the_first_token(
    tokenizer: Tokenizer, prompt: str
) -> None:
    model = text_model()
    texts, completion = complete(model, tokenizer, ["def", prompt, "x"], n_drafts=1)
    assert completion.prompts == ["def", prompt[:-1], "x"]
    assert texts[1].startswith(" ")
    assert (completion.prompts[1] + texts[1]).startswith(prompt)
    assert texts[1] == text_of(tokenizer, new_ids(model, tokenizer, prompt))
    assert [texts[0], texts[2]] == complete(model, tokenizer, ["def", "x"])[0]


@pytest.mark.parametrize("n_drafts", [0, 1])
def test_a_stop_string_ends_its_row_while_the_others_go_on(
    tokenizer: Tokenizer, n_drafts: int
) -> None:
    model = text_model()
    free, _ = complete(model, tokenizer, PROMPTS)
    stop = next(
        free[0][at : at + 2]
        for at in range(1, len(free[0]) - 1)
        if not any(free[0][at : at + 2] in text for text in free[1:])
    )
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    texts, _ = complete(model, tokenizer, PROMPTS, stops=[stop, "no such text"], n_drafts=n_drafts)
    hook.remove()
    assert texts == [free[0][: free[0].index(stop)], *free[1:]]
    assert sizes[0] == len(PROMPTS)
    assert sizes[-1] < len(PROMPTS)
    texts, completion = complete(model, tokenizer, PROMPTS[:1], stops=[free[0].rstrip("\ufffd")])
    assert (texts, completion.decoder.rows) == ([""], [])
    begun = [text[-1] + "\x00" for text in free if text]
    assert complete(model, tokenizer, PROMPTS, stops=begun)[0] == free  # pending text comes last
