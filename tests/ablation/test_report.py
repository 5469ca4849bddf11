"""The files of a report: what they say, that they say it twice alike, and what they refer to."""

import base64
import csv
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from mla_lm.ablation.report import write_report
from mla_lm.ablation.runs import Runs
from mla_lm.ablation.study import Study
from mla_lm.commands import ablate
from tests.ablation.folders import GQA, read, row, usual, write_run

COMMAND = "python -m mla_lm ablate x"
STUDY = Study.model_construct(question="a question?", arms={}, reference="mla")
FILES = ("results.csv", "costs.csv", "report.md", "report.html")
SPEEDS = {"decode/32/1": 90.0, "decode/64/1": 80.0, "decode/64/8": 700.0, "prefill/64/1": 4e3}
TITLES = [
    "Differences to mla",
    "Validation loss against what was spent",
    "Quality against KV cache",
    "KV cache and decoding speed against context",
    "Expert load balance over training",
]


def folders_of_two_arms(place: Path, *, speed: float = 1000.0) -> list[Path]:
    """Three seeds each; one run was cut short and one was profiled."""
    folders = []
    for arm, shift, overrides in (("mla", 0.0, ()), ("gqa", 0.1, (GQA,))):
        for seed in (1, 2, 3):
            rows = usual(1 + 0.01 * seed + shift, speed=speed)
            kept = rows[:2] if (arm, seed) == ("gqa", 3) else rows
            costs = {"peak_memory": 7 * 2**20, **SPEEDS} if (arm, seed) == ("mla", 3) else None
            folder = place / f"{arm}-s{seed}"
            folders.append(write_run(folder, kept, overrides=overrides, seed=seed, costs=costs))
    return folders


def written(out: Path, runs: Runs, study: Study = STUDY, **more: Any) -> dict[str, str]:
    write_report(out, runs, study, command=COMMAND, **more)
    return {name: (out / name).read_text(encoding="utf-8") for name in FILES}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a study")


@pytest.fixture(scope="module")
def texts(place: Path) -> dict[str, str]:
    """The report of `folders_of_two_arms`."""
    study = STUDY.model_copy(update={"match": "kv_bytes"})
    runs = read(*folders_of_two_arms(place))
    return written(place / "re port", runs, study, failed=["mha-s1 (exit status 1)"], jobs=2)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def figures(page: str) -> list[str]:
    return re.findall(r"<h3>(.*)</h3>\n<img", page)


def test_tables_for_machines(texts: dict[str, str]) -> None:
    rows = table(texts["results.csv"])
    assert [f"{r['arm']}{r['seed']} {r['finished']}" for r in rows] == [
        *("gqa1 yes", "gqa2 yes", "gqa3 no", "mla1 yes", "mla2 yes", "mla3 yes")
    ]
    assert (rows[0]["val_bpb"], rows[0]["val_loss"], rows[0]["lr"]) == ("1.11", "2.22", "0.006")
    assert (rows[2]["val_bpb"], rows[2]["steps"]) == ("", "0")
    assert (rows[3]["tokens"], rows[3]["kv_bytes"]) == ("10240", "112")
    costs = table(texts["costs.csv"])
    assert (costs[0]["peak_memory"], costs[-1]["peak_memory"]) == ("", "7340032")
    assert (costs[-1]["decode/64/1"], costs[-1]["step_seconds"]) == ("80", "0.256")


def test_equal_runs_make_equal_bytes_and_results_do_not_know_the_clock(
    tmp_path: Path, place: Path, texts: dict[str, str]
) -> None:
    folders = sorted(place.glob("*-s*"))
    first = written(place / "again", read(*folders))
    assert written(place / "again", read(*folders[::-1])) == first
    other = written(tmp_path, read(*folders_of_two_arms(tmp_path, speed=10.0)))
    assert other["results.csv"] == first["results.csv"] == texts["results.csv"]
    assert other["costs.csv"] != first["costs.csv"]


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_the_report_says_what_was_found_and_what_failed(texts: dict[str, str], name: str) -> None:
    for part in (
        "a question?",
        "gqa is worse than mla: val/bpb 1.1150 against 1.0150, difference +0.1000",
        "1.0200 ± 0.0100",
        "kv_bytes: highest and lowest 14.3 % apart",
        "gqa is compared without gqa-s3 (step 0 of 40).",
        "measured with 2 cells at a time",
        "Failed: mha-s1 (exit status 1)",
        "model.attention.kind",
        COMMAND,
    ):
        assert part in texts[name]


def test_the_page_is_one_file_that_refers_to_runs_only(place: Path, texts: dict[str, str]) -> None:
    page = texts["report.html"]
    targets = [unquote(target) for target in re.findall(r' href="([^"#]+)"', page)]
    assert {(place / "re port" / target).resolve() for target in targets} == {
        *(folder.resolve() for folder in place.glob("*-s*")),
        *(place / "re port" / name for name in FILES[:3]),
    }
    assert not re.search(r"<(link|iframe|script)|@import|url\(", page)
    assert figures(page) == TITLES
    images = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == page.count("<img") == len(TITLES)
    for image in images:
        assert len([*ElementTree.fromstring(base64.b64decode(image)).iter()]) > 50


def test_only_figures_with_something_to_show(tmp_path: Path) -> None:
    bare = read(write_run(tmp_path / "mla-s1", [row(40, loss=2.0, bpb=1.0)]))
    assert figures(written(tmp_path, bare)["report.html"]) == TITLES[1:4]
    begun = read(write_run(tmp_path / "mla-s2", usual(1.0)[:2]))
    texts = written(tmp_path, begun)
    assert "nothing is compared" in texts["report.md"]
    assert figures(texts["report.html"]) == []


def test_a_sweep_is_compared_at_its_best_rate(tmp_path: Path) -> None:
    swept = [
        write_run(tmp_path / f"mla-lr{lr}", usual(bpb), overrides=(f"optim.lr={lr}",))
        for lr, bpb in {0.5: 3.0, 0.25: 2.0}.items()
    ]
    text = written(tmp_path, read(*swept))["report.md"]
    assert "The best learning rate of mla, 0.25, is at the end of its grid." in text
    assert "which flatters" in text
    assert "| mla | 1 | 2.0000 |" in text


def test_exact_match_is_compared_where_it_is_graded(tmp_path: Path) -> None:
    graded = []
    for arm, right in (("mla", 0.5), ("gqa", 0.9)):
        for seed in (1, 2):
            rows = [row(40, loss=2.0, bpb=1.0 + seed / 100, match=right + seed / 1000)]
            graded.append(write_run(tmp_path / f"{arm}-s{seed}", rows, seed=seed))
    texts = written(tmp_path, read(*graded))
    assert "gqa is better than mla: val/exact_match 0.9015 against 0.5015" in texts["report.md"]
    assert "gqa is not distinguishable at this budget from mla" in texts["report.md"]
    assert table(texts["results.csv"])[0]["val_exact_match"] == "0.901"


def test_names_are_never_markup(tmp_path: Path) -> None:
    name = "=a<b>$x$|&_\n\x1b[31m\udcff](x)"
    folder = write_run(tmp_path / "run", usual(1.0)).rename(tmp_path / name)
    texts = written(tmp_path, read(folder, arm=name))
    assert "<b>" not in texts["report.html"]
    assert texts["report.html"].count("a&lt;b&gt;$x$|&amp;_") > 2
    assert r"=a\<b\>\$x\$\|\&\_ \\x1b\[31m\\udcff\](x)" in texts["report.md"]
    (row,) = table(texts["results.csv"])
    assert row["arm"] == r"'=a<b>$x$|&_ \x1b[31m\udcff](x)"
    assert not any("\x1b" in text for text in texts.values())


def test_the_command_is_a_block_of_code_whatever_it_holds(tmp_path: Path) -> None:
    command = "x\n```\n# not a title"
    write_report(tmp_path, read(write_run(tmp_path / "a", usual(1.0))), STUDY, command=command)
    assert f"````\n{command}\n````" in (tmp_path / "report.md").read_text()


def test_any_folder_of_runs_is_reported(tmp_path: Path) -> None:
    folders_of_two_arms(tmp_path / "runs")
    ablate.run([f"report={tmp_path / 'runs'}"])
    text = (tmp_path / "runs" / "report.md").read_text()
    assert "mla is better than gqa: val/bpb" in text  # the first run is of the reference
