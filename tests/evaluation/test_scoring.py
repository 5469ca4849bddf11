"""Log-likelihoods equal those of one plain forward pass a request, however they are batched."""

import copy
import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from mla_lm.data import Tokenizer
from mla_lm.evaluation import scoring
from mla_lm.evaluation.scoring import Request, Score, encode, plant, score
from mla_lm.model import Transformer
from tests.conftest import each_attention
from tests.generation.conftest import random_model
from tests.interop.random_runs import byte_tokenizer

N = 263


@torch.no_grad()
def plain(model: Transformer, request: Request) -> Score:
    text = torch.tensor([[*request.context, *request.continuation]])
    logits = model(text[:, :-1]).logits[0, len(request.context) - 1 :]
    target = text[0, len(request.context) :]
    likely = logits.log_softmax(-1).gather(1, target.unsqueeze(1)).sum()
    return Score(float(likely), bool((logits.argmax(-1) == target).all()))


def requests(*, seed: int = 0, longest: int = 32) -> list[Request]:
    """Contexts of all lengths, many shared by several continuations of different lengths."""
    rng = random.Random(seed)
    found = []
    for _ in range(25):
        context = tuple(rng.randrange(N) for _ in range(rng.randint(1, longest - 6)))
        for _ in range(rng.choice([1, 1, 2, 4])):
            after = tuple(rng.randrange(N) for _ in range(rng.randint(1, 6)))
            found.append(Request(context, after[: longest + 1 - len(context)]))
    rng.shuffle(found)
    return found


def check(found: list[Score], wanted: list[Score]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)
        assert one.greedy == other.greedy


@pytest.mark.parametrize("row", [1, 40, 500])
@pytest.mark.parametrize("batch", [1, 60, 2**14])
@each_attention
def test_scores_are_those_of_a_plain_pass(
    attention: tuple[str, ...], batch: int, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = random_model(*attention), requests()
    monkeypatch.setattr(scoring, "ROW", row)
    monkeypatch.setattr(scoring, "BATCH", batch)
    monkeypatch.setattr(scoring, "LOGITS", 7 * N)
    check(score(model, asked), [plain(model, request) for request in asked])


def test_greedy_continuations_are_told() -> None:
    model, context = random_model(), (5, 6, 7, 8, 9, 10, 11, 12, 13)
    best: tuple[int, ...] = ()
    for _ in range(3):
        text = torch.tensor([[*context, *best]])
        with torch.no_grad():
            best = (*best, int(model(text).logits[0, -1].argmax()))
    other = (best[0], (best[1] + 1) % N)
    found = score(model, [Request(context, best), Request(context, other)])
    assert [one.greedy for one in found] == [True, False]


def test_of_equals_the_first_is_greedy() -> None:
    model = copy.deepcopy(random_model())
    torch.nn.init.zeros_(model.lm_head.weight)
    found = score(model, [Request((4, 5), (0,)), Request((4, 5), (1,))])
    assert [one.greedy for one in found] == [True, False]


def test_a_continuation_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        score(random_model(), [Request((4,), ())])


def test_what_texts_share_is_read_once() -> None:
    context = tuple(range(20))
    (tree,) = plant([Request(context, (i // 2, i, 5)) for i in (2, 0, 3, 1)])
    assert len(tree) == 20 + 2 + 4
    assert sorted(tree.requests) == [0, 1, 2, 3]
    assert sorted(tree.depths) == [*range(20), 20, 20, 21, 21, 21, 21]
    assert len(plant([Request((5, *range(i, i + 20)), (1,)) for i in (0, 30)])) == 2


@torch.no_grad()
def test_a_token_that_sees_another_branch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were trees read as plain rows, the scores would be others."""
    model, asked = random_model(), [Request((4, 5, 6), (i, i, i)) for i in range(3)]
    wanted = [plain(model, request) for request in asked]
    check(score(model, asked), wanted)
    forward_tree = Transformer.forward_tree

    def seeing_all_before(self: Any, tokens: Any, positions: Any, seen: Any) -> Any:
        return forward_tree(self, tokens, positions, torch.ones_like(seen).tril())

    monkeypatch.setattr(Transformer, "forward_tree", seeing_all_before)
    with pytest.raises(AssertionError):
        check(score(model, asked), wanted)


def test_texts_are_encoded_as_by_the_harness() -> None:
    """With a tokenizer that merges across the border of context and continuation."""
    text = "answer: the answer:: is: a  b  c::" * 20
    tokenizer = Tokenizer.train([text], vocab_size=300, end_of_text="<|endoftext|>")
    harness = SimpleNamespace(prefix_token_id=tokenizer.end_of_text, backend="causal")
    harness.tok_encode = lambda text, add_special_tokens=True: [
        *[tokenizer.end_of_text] * add_special_tokens,
        *tokenizer.encode(text),
    ]
    harness._encode_pair = partial(TemplateLM._encode_pair, harness)
    harness._loglikelihood_tokens = lambda asked, **_: [tuple(map(tuple, ids)) for _, *ids in asked]
    pairs = [("answer:", ": is"), ("the answer", " is"), ("a ", " b"), ("", "is")]
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    wanted = TemplateLM.loglikelihood(harness, instances, disable_tqdm=True)
    assert encode(pairs, tokenizer, max_seq_len=50) == [(request, False) for request in wanted]


def test_a_continuation_that_is_merged_away_keeps_a_token() -> None:
    tokenizer = Tokenizer.train(["hello " * 9], vocab_size=270, end_of_text="<|endoftext|>")
    ((found, _),) = encode([("hel", "lo")], tokenizer, max_seq_len=50)
    assert found == Request((tokenizer.end_of_text,), tuple(tokenizer.encode("hello")))


def test_what_is_too_long_loses_its_beginning() -> None:
    tokenizer = byte_tokenizer()
    pairs = [("abcdef", "xy"), ("a", "xy"), ("ab", "stuvwxyz")]
    (one, two, three) = encode(pairs, tokenizer, max_seq_len=6)
    ids = tokenizer.encode
    assert one == (Request(tuple(ids("bcdef")), tuple(ids("xy"))), True)
    assert (two[0].context[0], two[1]) == (tokenizer.end_of_text, False)
    assert three == (Request(tuple(ids("b")), tuple(ids("uvwxyz"))), True)
