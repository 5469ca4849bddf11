"""Every key in configs/ says on its own line what it means; experiments and studies are deltas."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mla_lm.config import CONFIGS
from mla_lm.config.compose import compose
from mla_lm.config.section import leaves

KEY = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value> +[^#\s].*)?")
COMMENT = re.compile(r" # \w")
DELTAS = ("experiment", "ablation")
LISTED = {"defaults", "hydra"}  # not of a run: what is composed, and how
DOCUMENTED = [
    path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if path.relative_to(CONFIGS).parts[0] not in DELTAS
]


def lines(text: str, *, package: str) -> Iterator[tuple[str, str]]:
    """The dotted key of every leaf, and its line."""
    above: list[tuple[int, str]] = []  # (indent, key) of the mappings that the line is in
    for line in text.splitlines():
        if not (match := KEY.match(line)):
            continue
        indent = len(match["indent"])
        above = [parent for parent in above if parent[0] < indent] + [(indent, match["key"])]
        if match["value"] and above[0][1] not in LISTED:
            yield ".".join([*package.split(), *(key for _, key in above)]), line


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text()
    at_top = "@package _global_" in text
    return lines(text, package="" if at_top else " ".join(path.relative_to(CONFIGS).parts[:-1]))


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_key_has_a_comment(path: Path) -> None:
    found = [line for _, line in lines_of(path)]
    assert found
    assert [line for line in found if not COMMENT.search(line)] == []


def test_a_key_without_a_comment_is_found() -> None:
    text = (
        "# head\ndefaults: [x]\na: 1 # what\nb: # of these\n  c: 2\n  d: ${e} #\nhydra:\n  f: 1\n"
    )
    found = dict(lines(text, package="model rope"))
    assert list(found) == ["model.rope.a", "model.rope.b.c", "model.rope.b.d"]
    assert [bool(COMMENT.search(line)) for line in found.values()] == [True, False, False]


@pytest.mark.parametrize(("name", "other"), [("train", "eval"), ("eval", "train")])
def test_every_key_of_a_default_run_is_documented(name: str, other: str) -> None:
    said = {
        key
        for path in DOCUMENTED
        if path != CONFIGS / f"{other}.yaml"
        for key, line in lines_of(path)
        if COMMENT.search(line)
    }
    composed = compose(name, ["ckpt=x"] if name == "eval" else [])
    keys = [key for key, _ in leaves(composed)]
    assert len(keys) > 10
    assert [key for key in keys if not {key, key.rpartition(".")[0]} & said] == []
