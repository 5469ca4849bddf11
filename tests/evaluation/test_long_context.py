"""Pass keys stand where they are said to, and every question is answered by its own text."""

import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mla_lm import load_config
from mla_lm.config import SyntheticConfig
from mla_lm.data import Tokenizer
from mla_lm.data.corpora.synthetic import synthetic_documents
from mla_lm.evaluation import long_context, scoring
from mla_lm.evaluation.long_context import DEPTHS, N_KEYS, passkey, passkey_trials, recall
from mla_lm.evaluation.scoring import Request, Score
from mla_lm.model import Transformer
from tests.conftest import tiny_config
from tests.generation.conftest import random_model
from tests.interop.random_runs import byte_tokenizer

TOKENIZER = byte_tokenizer()
IDS = np.array(TOKENIZER.encode("It rained and they stayed at home. " * 400))
LENGTHS = (128, 256, 512, 1024)
LONG = tiny_config("data.seq_len=1024").model


def trials(**keys: Any) -> list[long_context.Trial]:
    return passkey_trials(LONG, TOKENIZER, IDS, **{"seed": 1, "n_texts": 2} | keys)


def test_a_key_is_told_once_at_its_depth() -> None:
    found = trials()
    assert {trial.length for trial in found} == {*LENGTHS}
    assert len(found) == 4 * 2 * len(DEPTHS)
    assert found == trials() != trials(seed=2)
    for trial in found:
        context = trial.requests[0].context
        assert all(request.context == context for request in trial.requests)
        assert context[0] == TOKENIZER.end_of_text
        text = TOKENIZER.decode(context)
        answers = [TOKENIZER.decode(request.continuation) for request in trial.requests]
        assert len(set(answers)) == N_KEYS
        told = re.findall(r"The pass key is (\d+)\.", text)
        assert [f" {key}" for key in told] == [answers[trial.gold]]
        assert len(context) + max(len(r.continuation) for r in trial.requests) == trial.length + 1
        before = text.index(" The pass key")
        after = len(text) - before - len(long_context.ASKED) - len(long_context.STATED)
        assert before / (before + after) == pytest.approx(trial.depth, abs=0.05)


def test_short_and_divided_texts_are_joined() -> None:
    ids = IDS[:50].copy()  # repeated
    ids[::7] = TOKENIZER.end_of_text
    cfg = tiny_config("data.seq_len=400").model  # 50 and 100 tokens hold no key
    found = passkey_trials(cfg, TOKENIZER, ids, seed=1, n_texts=1)
    assert {trial.length for trial in found} == {200, 400}
    for trial in found:
        assert TOKENIZER.end_of_text not in trial.requests[0].context[1:]


@pytest.mark.parametrize("seq_len", range(300, 800, 100))
def test_a_length_has_all_its_depths_or_none(seq_len: int) -> None:
    """Of a tokenizer to which some keys are longer than others."""
    text = " ".join(f"The pass key is {n}. Remember it. What?" for n in range(10_000, 11_000, 7))
    bpe = Tokenizer.train([text], vocab_size=400, end_of_text="<|endoftext|>")
    cfg = tiny_config(f"data.seq_len={seq_len}").model
    found = passkey_trials(cfg, bpe, IDS, seed=1, n_texts=3)
    assert len({len(request.continuation) for trial in found for request in trial.requests}) > 1
    for length in {trial.length for trial in found}:
        depths = [trial.depth for trial in found if trial.length == length]
        assert depths == [depth for depth in DEPTHS for _ in range(3)]


@pytest.mark.parametrize("right", [True, False])
def test_one_who_reads_finds_every_key(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(_: object, requests: Sequence[Request]) -> list[Score]:
        """One who believes, or never believes, what the text says."""
        texts = [tuple(map(TOKENIZER.decode, request)) for request in requests]
        believed = [(answer in context) == right for context, answer in texts]
        return [Score(0.0 if one else -9.0, one) for one in believed]

    monkeypatch.setattr(scoring, "score", reader)
    found = passkey(random_model(), trials())
    for length in LENGTHS:
        assert found[f"passkey/{length}"] == found[f"passkey/{length}/greedy"] == right
        assert found[f"passkey/{length}_stderr"] == 0
        assert found["passkey/by_depth"][length] == [right] * len(DEPTHS)


@pytest.mark.parametrize("synthetic", [True, False])
def test_one_who_remembers_recalls_every_partner(
    synthetic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (opening,), (filler,) = map(TOKENIZER.encode, "=.")

    def remembered(_: object, requests: Sequence[Request]) -> list[Score]:
        """One who knows the pairs at the beginning of a text."""
        found = []
        for context, (answer,) in requests:
            ids = [token for token in context[1:] if not (synthetic and token == filler)]
            key = ids[-2] if synthetic else ids[-1]
            n = ids.index(opening) - 1 if synthetic else len(ids)
            partner = dict(zip(ids[:n:2], ids[1:n:2], strict=False))[key]
            found.append(Score(0.0, partner == answer))
        return found

    monkeypatch.setattr(scoring, "score", remembered)
    model = random_model("data.seq_len=1024")
    found = recall(model, TOKENIZER, synthetic=synthetic, seed=1, n_texts=3)
    for length in LENGTHS if synthetic else LENGTHS[:-1]:  # 256 bytes fill no text of 1,024
        assert found[f"recall/{length}"] == 1
        assert found[f"recall/{length}_stderr"] == 0
    assert synthetic or "recall/1024" not in found


@pytest.mark.parametrize("synthetic", [True, False])
def test_partners_are_asked_for_within_the_length(synthetic: bool) -> None:
    text_of = long_context._synthetic_text if synthetic else long_context._pairs_of_tokens
    for length in (16, 100, 256, 512):
        asked = list(text_of(TOKENIZER, random.Random(0), length))
        longest = max(len(request.context) + 1 for request in asked)
        assert longest <= length
        assert len({request.context[-2 if synthetic else -1] for request in asked}) == len(asked)
        assert len(asked) == (min(52, (length - 1) // 6) if synthetic else (length - 1) // 4)


def test_the_synthetic_texts_are_those_of_the_corpus() -> None:
    cfg = load_config(["data=synthetic", "data.task=recall", "data.seq_len=64"]).data
    assert isinstance(cfg, SyntheticConfig)
    document = next(iter(synthetic_documents(cfg)))
    (*_, last) = long_context._synthetic_text(TOKENIZER, random.Random("recall 0"), 64)
    text = TOKENIZER.decode([*last.context, *last.continuation])
    assert "".join(document.parts).startswith(text)


def test_errors_are_those_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a text or nothing: as if there were three questions, not hundreds."""

    def all_or_nothing(_: object, asked: Sequence[Request]) -> list[Score]:
        return [Score(0.0, i < len(asked) // 3) for i in range(len(asked))]

    monkeypatch.setattr(scoring, "score", all_or_nothing)
    model = random_model("data.seq_len=512")
    found = recall(model, TOKENIZER, synthetic=False, seed=1, n_texts=3)
    assert found["recall/512"] == pytest.approx(1 / 3)
    assert found["recall/512_stderr"] == pytest.approx(1 / 3)


def test_a_random_model_guesses() -> None:
    model = random_model("data.seq_len=256")
    found = passkey(model, passkey_trials(model.cfg, TOKENIZER, IDS, seed=1, n_texts=8))
    assert 0 <= found["passkey/256"] < 0.4
    found = recall(model, TOKENIZER, synthetic=False, seed=1, n_texts=3)
    assert all(value < 0.1 for value in found.values())


@torch.no_grad()
def test_positions_as_they_are() -> None:
    plain = random_model()
    cfg = plain.cfg
    assert long_context.without_yarn(plain) is None
    stretched = Transformer(cfg.extended(128)).eval()
    stretched.load_state_dict(plain.state_dict())
    longer = Transformer(cfg.model_copy(update={"max_seq_len": 128})).eval()
    longer.load_state_dict(plain.state_dict())
    found = long_context.without_yarn(stretched)
    assert found is not None
    unstretched = stretched.cfg.rope.model_copy(update={"factor": 1.0})
    same = Transformer(cfg.model_copy(update={"rope": unstretched}))
    assert long_context.without_yarn(same) is None
    tokens = torch.randint(cfg.vocab_size, (2, 128))
    logits = [model(tokens, mtp=False).logits for model in (found, longer, stretched)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
