"""The files of a report: what they say, that they say it twice alike, and what they refer to."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import pytest

from mla_lm.ablation.report import About, write_report
from mla_lm.ablation.results import Run, read_run, runs_below
from mla_lm.ablation.tables import quantity
from tests.ablation.folders import made_run, row, usual, write_run
from tests.runs.conftest import short_run, train_here, write_corpus

ABOUT = About("a title", "a question?", "python -m mla_lm ablate x", {"mla": "0a1b"}, "mla", "none")
FILES = ("results.csv", "costs.csv", "report.md", "report.html")
SPEEDS = {"decode/32/1": 90.0, "decode/64/1": 80.0, "decode/64/8": 700.0, "prefill/64/1": 4e3}


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two arms of two seeds; one run cut short and one that was profiled."""
    gqa = "model/attention=gqa"
    found = [
        made_run(tmp_path, arm, seed, 1 + 0.01 * seed + shift, *words)
        for arm, shift, words in (("mla", 0.0, ()), ("gqa", 0.1, (gqa,)))
        for seed in (1, 2)
    ]
    write_run(tmp_path / "cut", [usual(1.0)[:2]], words=(gqa,), seed=3)
    write_run(tmp_path / "seen", [usual(1.03)], seed=3, speeds=SPEEDS, peak_memory=7 * 2**20)
    found.append(read_run(tmp_path / "cut", arm="gqa", name="cut"))
    return [*found, read_run(tmp_path / "seen", arm="mla", name="seen")]


def written(out: Path, runs: Sequence[Run], about: About = ABOUT) -> dict[str, str]:
    write_report(out, runs, about)
    return {name: (out / name).read_text(encoding="utf-8") for name in FILES}


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def charts(page: str) -> list[str]:
    return re.findall(r'<figure id="([\w-]+)"', page)


def test_results_hold_every_run(tmp_path: Path, runs: list[Run]) -> None:
    rows = table(written(tmp_path, runs)["results.csv"])
    assert [(r["arm"], r["seed"], r["finished"]) for r in rows] == [
        ("gqa", "1", "yes"),
        ("gqa", "2", "yes"),
        ("gqa", "3", "no"),
        ("mla", "1", "yes"),
        ("mla", "2", "yes"),
        ("mla", "3", "yes"),
    ]
    assert (rows[0]["val_bpb"], rows[0]["val_loss"]) == ("1.110000", "2.220000")
    assert (rows[2]["val_bpb"], rows[2]["steps"]) == ("", "0")
    assert (rows[3]["tokens"], rows[3]["kv_bytes"]) == ("10240", "112")


def test_costs_hold_what_was_measured(tmp_path: Path, runs: list[Run]) -> None:
    rows = table(written(tmp_path, runs)["costs.csv"])
    last = rows[-1]
    assert (last["run"], last["peak_memory"], last["decode/64/1"]) == (
        "seen",
        "7340032",
        "80.000000",
    )
    assert (last["step_seconds"], last["training_seconds"]) == ("0.256000", "10.240000")
    assert list(last)[-4:] == ["decode/32/1", "decode/64/1", "decode/64/8", "prefill/64/1"]
    assert rows[0]["peak_memory"] == ""


def test_same_runs_make_the_same_bytes(tmp_path: Path, runs: list[Run]) -> None:
    assert written(tmp_path, runs) == written(tmp_path, runs)
    backwards = written(tmp_path, runs[::-1])
    assert backwards["results.csv"] == written(tmp_path, runs)["results.csv"]


def test_results_do_not_know_the_clock(tmp_path: Path) -> None:
    slow, fast = (
        written(tmp_path / name, [made_run(tmp_path / name, "mla", 1, 1.0, speed=speed)])
        for name, speed in (("slow", 10.0), ("fast", 1000.0))
    )
    assert slow["results.csv"] == fast["results.csv"]
    assert slow["costs.csv"] != fast["costs.csv"]


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_report_says_what_was_found_and_what_failed(
    tmp_path: Path, runs: list[Run], name: str
) -> None:
    about = ABOUT._replace(match="kv_bytes", failed=("mha-s1 (exit status 1)",))
    text = written(tmp_path, runs, about)[name]
    for part in (
        "a question?",
        "gqa is worse than mla: val/bpb 1.1150 against 1.0150, difference +0.1000",
        "1.0200 ± 0.0100",
        "kv_bytes: highest and lowest 14.3 % apart",
        "mha-s1 (exit status 1)",
        "step 0 of 40",
        "model.attention.kind=gqa",
        about.command,
        about.configurations["mla"],
    ):
        assert part in text


def test_links_lead_to_runs_and_nowhere_else(tmp_path: Path, runs: list[Run]) -> None:
    out = tmp_path / "re port"
    page = written(out, runs)["report.html"]
    targets = [unquote(target) for target in re.findall(r'href="([^"#]+)"', page)]
    assert {(out / target).resolve() for target in targets} >= {run.folder for run in runs}
    assert all((out / target).exists() for target in targets)
    assert not re.search(r"<(link|img|iframe|script [^>]*src)|@import|url\((?!#)", page)


def test_only_charts_with_something_to_show(tmp_path: Path, runs: list[Run]) -> None:
    whole = ["difference-bpb", "loss-tokens", "loss-flops", "loss-wall-clock", "pareto", "cache"]
    whole += ["decode-1", "decode-8", "violation"]
    assert charts(written(tmp_path, runs)["report.html"]) == whole
    folder = write_run(tmp_path / "bare", [[row(40, loss=2.0, bpb=1.0)]])
    bare = [read_run(folder, arm="mla", name="bare")]
    assert charts(written(tmp_path, bare)["report.html"]) == [*whole[1:3], "pareto", "cache"]
    begun = [run for run in runs if not run.finished]
    assert "nothing is compared" in written(tmp_path, begun)["report.md"]
    assert charts((tmp_path / "report.html").read_text()) == []


def test_sweep_is_shown_and_its_best_rate_compared(tmp_path: Path) -> None:
    swept = [
        made_run(tmp_path, "mla", 1, bpb, f"optim.lr={lr}") for lr, bpb in ((1, 3.0), (2, 2.0))
    ]
    texts = written(tmp_path, swept)
    assert "## Learning rates" in texts["report.md"]
    assert re.search(r"\| mla \| \[1\]\(mla-s1-optim.lr%3D2/\) \| 2.0000 \|", texts["report.md"])


def test_exact_match_is_compared_where_it_is_graded(tmp_path: Path) -> None:
    graded = []
    for arm, right in (("mla", 0.5), ("gqa", 0.9)):
        for seed in (1, 2):
            rows = [row(40, loss=2.0, bpb=1.0 + seed / 100, match=right + seed / 1000)]
            folder = write_run(tmp_path / f"{arm}{seed}", [rows], seed=seed)
            graded.append(read_run(folder, arm=arm, name=folder.name))
    texts = written(tmp_path, graded)
    assert "gqa is better than mla: val/exact_match 0.9015 against 0.5015" in texts["report.md"]
    assert "gqa is not distinguishable from mla" in texts["report.md"]
    assert charts(texts["report.html"])[:2] == ["difference-exact_match", "difference-bpb"]
    assert table(texts["results.csv"])[0]["val_exact_match"] == "0.901000"


def test_names_are_never_markup(tmp_path: Path) -> None:
    name = "a<b>$x$|&_"
    folder = write_run(tmp_path / "run", [usual(1.0)])
    texts = written(tmp_path, [read_run(folder, arm=name, name=name)])
    assert "<b>" not in texts["report.html"]
    assert texts["report.html"].count("a&lt;b&gt;$x$|&amp;_") > 3
    assert r"a<b>$x$\|&_" in texts["report.md"]


def test_report_of_a_folder_of_real_runs(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text")
    for kind in ("mla", "gqa"):
        words = [*short_run(tmp_path), f"model/attention={kind}", "callbacks.samples=null"]
        train_here(*words, f"run_dir={tmp_path / 'runs' / kind}", "resume=null")
    found = runs_below(tmp_path / "runs")
    assert [run.arm for run in found] == ["gqa", "mla"]
    texts = written(tmp_path / "runs", found)
    rows = table(texts["results.csv"])
    assert [row["finished"] for row in rows] == ["yes", "yes"]
    assert float(rows[0]["val_bpb"]) != float(rows[1]["val_bpb"])
    assert "gqa against mla: val/bpb" in texts["report.html"]
    assert charts(texts["report.html"])[-1] == "violation"
    assert float(table(texts["costs.csv"])[0]["training_seconds"]) > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(9_999, "9999"), (12_345, "12.3k"), (999_600, "1M"), (3_904_000, "3.9M"), (1e9 - 1, "1G")],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert quantity(value).text == text
