"""Experts are counted right, whatever a step is made of; a step that is not finite changes nothing.

Alone in this process, and as two ranks in processes of their own.
"""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.processes import ROOT, command, environment, torchrun_variables
from tests.reliability.record import record
from tests.training.faults import FAULTS, poisons, train_poisoned
from tests.training.small import CASES, Case, reference, trained

Found = dict[str, Any]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    place = tmp_path_factory.mktemp("ranks")
    script = str(ROOT / "tests/training/two_ranks.py")
    running = [
        subprocess.Popen(
            command(script, str(place / f"{rank}.json")),
            cwd=place,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, variables in enumerate(torchrun_variables(2))
    ]
    for process in running:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts_and_biases_are_those_of_a_plain_loop(case: Case) -> None:
    wanted = reference(case)
    assert trained(case) == wanted
    assert any(bias != 0 for layer in wanted["biases"] for bias in layer)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_count_as_one(case: Case, two_ranks: list[Found]) -> None:
    assert [found[str(case)] for found in two_ranks] == [reference(case, 2)] * 2


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_wrong_counts_are_noticed(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[1]
    wanted = reference(case)
    fault(monkeypatch)
    assert trained(case) != wanted


def test_counts_of_one_rank_only_are_noticed(two_ranks: list[Found]) -> None:
    assert [found["fault"] != reference(CASES[1], 2) for found in two_ranks] == [True, True]


def test_a_poisoned_step_changes_nothing_on_any_rank(two_ranks: list[Found]) -> None:
    alone = [train_poisoned(p) for p in poisons("loss", "gradient", "micro-batch")]
    together = [found[str(p)] for p in poisons("micro-batch") for found in two_ranks]
    found = [*alone, *together[::2]]
    clean = [case for case in found if case["poisoned"] == []]
    record(
        "NaN or Inf in loss, gradient, micro-batch, rank: state unchanged", len(clean), len(found)
    )
    assert len(found) == 16
    for case in [*alone, *together]:
        assert case["poisoned"] == []
        for name in ("e_score_correction_bias", "o_proj.weight", "losses"):
            assert name in " ".join(case["after"])
