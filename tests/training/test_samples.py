"""What samples continue: the beginnings of validation documents."""

import numpy as np
import pytest

from mla_lm.training.callbacks import first_words
from tests.training.small import TOKENIZER

STORY, CODE, WORDLESS = "Once upon a midnight dreary", "def f(x):\n    return x", "終わりのない文章"


@pytest.mark.parametrize(
    ("documents", "n_tokens", "prompts"),
    [
        ([STORY, CODE], 16, ["Once upon a", "def f(x):"]),  # no cut word
        ([STORY, "a b c d e f"], 99, ["Once upon a midnight", "a b c d"]),
        ([WORDLESS, "Hi"], 16, ["終わりのな", "Hi"]),  # no cut character
        (["Hi", "Hi", "Hi", "Hi"], 1, ["H", "H", "H"]),
    ],
)
def test_prompts_are_the_first_words_of_documents(
    documents: list[str], n_tokens: int, prompts: list[str]
) -> None:
    ids = [[TOKENIZER.end_of_text, *TOKENIZER.encode(text)] for text in documents]
    assert first_words(np.concatenate(ids), TOKENIZER, n_tokens=n_tokens) == prompts
