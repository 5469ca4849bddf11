"""Log-likelihoods equal those of one plain forward pass a request, however they are batched."""

import copy
import random
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from mla_lm.data import Tokenizer
from mla_lm.evaluation import scoring
from mla_lm.evaluation.harness import harness_model
from mla_lm.evaluation.items import Pair
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
    return Score(float(likely), len(target), bool((logits.argmax(-1) == target).all()))


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
        assert (one.n_tokens, one.greedy) == (other.n_tokens, other.greedy)


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
    assert tree.ends[19] == len(tree)
    assert sorted(tree.depths) == [*range(20), 20, 20, 21, 21, 21, 21]


def test_texts_that_share_little_stand_apart() -> None:
    one, other = (5, *range(20)), (5, *range(30, 50))
    assert len(plant([Request(one, (1,)), Request(other, (1,))])) == 2


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


def test_progress_tells_of_each_request() -> None:
    told: list[int] = []
    score(random_model(), requests(), show=told.append)
    assert sum(told) == len(requests())


def test_texts_become_what_the_harness_would_score() -> None:
    tokenizer = byte_tokenizer()
    pairs = [Pair("ab ", "cd"), Pair("", "xy"), Pair("ab", " cd")]
    found = encode(pairs, tokenizer, max_seq_len=50)
    eot, ids = tokenizer.end_of_text, tokenizer.encode
    assert found.n_truncated == 0
    assert found.requests == [
        Request((eot, *ids("ab")), tuple(ids(" cd"))),
        Request((eot,), tuple(ids("xy"))),
        Request((eot, *ids("ab")), tuple(ids(" cd"))),
    ]


def test_merges_across_the_border_are_those_of_the_harness() -> None:
    """The same ids as its own `loglikelihood` makes, with a tokenizer that merges."""
    text = "answer: the answer:: is: a  b  c::" * 20
    tokenizer = Tokenizer.train([text], vocab_size=300, end_of_text="<|endoftext|>")
    pairs = [Pair("answer:", ": is"), Pair("the answer", " is"), Pair("a ", " b"), Pair("", "is")]
    adapter = harness_model(random_model(vocab_size=320), tokenizer)
    asked: list[tuple[list[int], list[int]]] = []
    adapter._loglikelihood_tokens = lambda requests, **_: asked.extend(r[1:] for r in requests)
    instances = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(pairs)]
    adapter.loglikelihood(instances, disable_tqdm=True)
    found = encode(pairs, tokenizer, max_seq_len=50).requests
    assert [(list(a), list(b)) for a, b in found] == [(list(a), list(b)) for a, b in asked]


def test_a_continuation_that_is_merged_away_keeps_a_token() -> None:
    tokenizer = Tokenizer.train(["hello " * 9], vocab_size=270, end_of_text="<|endoftext|>")
    (found,) = encode([Pair("hel", "lo")], tokenizer, max_seq_len=50).requests
    assert found == Request((tokenizer.end_of_text,), tuple(tokenizer.encode("hello")))


def test_what_is_too_long_loses_its_beginning() -> None:
    tokenizer = byte_tokenizer()
    pairs = [Pair("abcdef", "xy"), Pair("a", "xy"), Pair("ab", "stuvwxyz")]
    found = encode(pairs, tokenizer, max_seq_len=6)
    ids = tokenizer.encode
    assert found.requests[0] == Request(tuple(ids("bcdef")), tuple(ids("xy")))
    assert found.requests[1].context[0] == tokenizer.end_of_text
    assert found.requests[2] == Request(tuple(ids("b")), tuple(ids("uvwxyz")))
    assert found.n_truncated == 2
