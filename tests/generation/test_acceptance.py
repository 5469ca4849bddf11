"""Rejection sampling: what is emitted follows the target, whatever the drafts come from."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.generation import Sampling
from mla_lm.generation.sampling import accept, choose, distribution, draw, verify
from tests.generation.conftest import chi_square

V = 4
N = 40_000
Accept = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chances(*shape: int, seed: int) -> Tensor:
    """Distributions over V ids, some of which are impossible."""
    weights = torch.rand(*shape, V, generator=generator(seed)) ** 3
    weights = weights.masked_fill(torch.rand(*shape, V, generator=generator(seed + 1)) < 0.15, 0)
    weights[..., 0] += 0.05
    return weights / weights.sum(dim=-1, keepdim=True)


class Process:
    """Three ids, each distributed by those before it."""

    def __init__(self, seed: int) -> None:
        self.levels = [chances(*[V] * depth, seed=seed + 7 * depth) for depth in range(3)]

    def next(self, ids: Tensor) -> Tensor:
        """ids (N, n) -> (N, V)."""
        level = self.levels[ids.shape[1]]
        return level.expand(len(ids), V) if not ids.shape[1] else level[tuple(ids.unbind(1))]

    def joint(self) -> Tensor:
        first, second, third = self.levels
        return first[:, None, None] * second[:, :, None] * third


def speculate(accept: Accept, target: Process, drafts: Process, k: int) -> tuple[Tensor, Tensor]:
    """Three ids of N rows (N, 3), the first ones by k drafts, and how many drafts were kept."""
    source = generator(1)
    ids = torch.zeros(N, 0, dtype=torch.int64)
    q = torch.zeros(N, 0, V)
    for _ in range(k):
        q = torch.cat((q, drafts.next(ids).unsqueeze(1)), dim=1)
        ids = torch.cat((ids, draw(q[:, -1], source).unsqueeze(1)), dim=1)
    p = torch.stack([target.next(ids[:, :n]) for n in range(k + 1)], dim=1)  # (N, k + 1, V)
    n_kept, following = accept(p, q, ids, source)
    emitted = F.pad(ids, (0, 3 - k))
    for place in range(3):
        later = draw(target.next(emitted[:, :place]), source)
        new = torch.where(n_kept == place, following, later)
        emitted[:, place] = torch.where(n_kept > place, emitted[:, place], new)
    return emitted, n_kept


def check_follows_target(accept: Accept, k: int, seed: int) -> None:
    target, drafts = Process(100 + seed), Process(200 + seed)
    emitted, _ = speculate(accept, target, drafts, k)
    places = emitted[:, 0] * V * V + emitted[:, 1] * V + emitted[:, 2]
    p_value = chi_square(places.bincount(minlength=V**3), target.joint().flatten())
    assert p_value > 1e-3, f"{p_value}"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [0, 1, 2])
def test_what_is_emitted_follows_the_target(k: int, seed: int) -> None:
    check_follows_target(accept, k, seed)


def always(p: Tensor, q: Tensor, ids: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    n_kept = torch.full((len(ids),), ids.shape[1])
    return n_kept, draw(p[:, -1], source)


def never(p: Tensor, q: Tensor, ids: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rejects whatever comes, but replaces it as if it had been rejected by chance."""
    return torch.zeros(len(ids), dtype=torch.int64), draw((p[:, 0] - q[:, 0]).clamp(min=0), source)


def replaces_from_target(
    p: Tensor, q: Tensor, ids: Tensor, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    n_kept, _ = accept(p, q, ids, source)
    return n_kept, draw(p[torch.arange(len(ids)), n_kept], source)


def goes_on_after_a_rejection(
    p: Tensor, q: Tensor, ids: Tensor, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    n_kept, following = accept(p.flip(1), q.flip(1), ids.flip(1), source)
    return n_kept, following


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("wrong", [always, never, replaces_from_target])
def test_wrong_acceptance_is_found(wrong: Accept, k: int) -> None:
    with pytest.raises(AssertionError):
        check_follows_target(wrong, k, seed=0)


def test_drafts_accepted_out_of_order_are_found() -> None:
    with pytest.raises(AssertionError):
        check_follows_target(goes_on_after_a_rejection, 2, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_as_many_are_kept_as_the_distributions_overlap(seed: int) -> None:
    target, drafts = Process(100 + seed), Process(200 + seed)
    _, n_kept = speculate(accept, target, drafts, 2)
    p, q = target.levels, drafts.levels
    first = torch.minimum(p[0], q[0])  # (V,) kept with this id
    both = first * torch.minimum(p[1], q[1]).sum(dim=-1)
    expected = torch.tensor([1 - first.sum(), first.sum() - both.sum(), both.sum()])
    assert chi_square(n_kept.bincount(minlength=3), expected) > 1e-3


def test_without_drafts_there_is_nothing_to_keep() -> None:
    p = F.one_hot(torch.tensor([[2], [0], [3]]), V).float()
    n_kept, following = accept(p, p[:, :0], torch.zeros(3, 0).long(), generator())
    assert n_kept.tolist() == [0, 0, 0]
    assert following.tolist() == [2, 0, 3]


@pytest.mark.parametrize("k", [1, 2])
def test_drafts_from_the_target_itself_are_all_kept(k: int) -> None:
    same = Process(300)
    _, n_kept = speculate(accept, same, same, k)
    assert (n_kept == k).all()


@pytest.mark.parametrize("k", [1, 2])
def test_drafts_the_target_excludes_are_never_kept(k: int) -> None:
    p = torch.tensor([0.3, 0.0, 0.7, 0.0]).expand(N, k + 1, V)
    q = torch.tensor([0.0, 0.6, 0.0, 0.4]).expand(N, k, V)
    ids = draw(q.reshape(-1, V), generator()).view(N, k)
    n_kept, following = accept(p, q, ids, generator(1))
    assert not n_kept.any()
    assert chi_square(following.bincount(minlength=V), p[0, 0]) > 1e-3


def test_greedy_drafts_are_kept_up_to_the_first_that_differs() -> None:
    best = torch.tensor([[1, 2, 3], [1, 0, 3], [0, 2, 3], [0, 0, 3]])
    ids = torch.tensor([[1, 2]] * 4)
    n_kept, following = accept(
        F.one_hot(best, V).float(), F.one_hot(ids, V).float(), ids, generator()
    )
    assert n_kept.tolist() == [2, 1, 0, 0]
    assert following.tolist() == [3, 0, 0, 0]


def test_where_rounding_leaves_no_residual_the_target_is_drawn_from() -> None:
    p, q = torch.tensor([0.1, 0.3, 0.6, 0.0]), torch.tensor([0.4, 0.3, 0.6, 0.0])
    ids = torch.zeros(N, 1, dtype=torch.int64)
    n_kept, following = accept(p.expand(N, 2, V), q.expand(N, 1, V), ids, generator())
    assert chi_square(n_kept.bincount(minlength=2), torch.tensor([0.75, 0.25])) > 1e-3
    assert chi_square(following.bincount(minlength=V), p) > 1e-3


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("how", [Sampling(0), Sampling(0.8, top_k=3)], ids=["greedy", "sampled"])
def test_verification_is_acceptance_by_the_models_distributions(how: Sampling, k: int) -> None:
    """Greedy verification goes without distributions; those are what it is to agree with."""
    logits = torch.randn(300, k + 1, V, generator=generator(1))
    q = distribution(torch.randn(300, k, V, generator=generator(2)), how)
    ids = draw(q.view(-1, V), generator(3)).view(300, k) if k else torch.zeros(300, 0).long()
    got = verify(logits, q, ids, how, generator(4))
    expected = accept(distribution(logits, how), q, ids, generator(4))
    for mine, reference in zip(got, expected, strict=True):
        assert mine.dtype == torch.int64
        assert torch.equal(mine, reference)
    assert set(got[0].tolist()) == set(range(k + 1))


@pytest.mark.parametrize("how", [Sampling(0), Sampling(0.8, top_k=3)], ids=["greedy", "sampled"])
def test_what_is_chosen_comes_with_its_distribution(how: Sampling) -> None:
    logits = torch.randn(300, V, generator=generator(1))
    ids, probabilities = choose(logits, how, generator(2))
    assert torch.equal(probabilities, distribution(logits, how))
    assert torch.equal(ids, draw(probabilities, generator(2)))
