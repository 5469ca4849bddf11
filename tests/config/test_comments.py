"""Every key in configs/ says on its own line what it means; experiments and studies are deltas."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mla_lm.config import CONFIGS

COMMENT = re.compile(r" # \w")
DELTAS = ("experiment", "ablation")
LISTED = ("defaults", "hydra")  # not of a run: what is composed, and how
DOCUMENTED = [
    path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if path.relative_to(CONFIGS).parts[0] not in DELTAS
]


def lines(text: str) -> list[str]:
    """The line of every key that holds a value, not a block of keys."""

    def below(node: yaml.MappingNode) -> Iterator[int]:
        for key, value in node.value:
            if isinstance(value, yaml.MappingNode) and not value.flow_style:
                yield from below(value) if key.value not in LISTED else ()
            elif key.value not in LISTED:
                yield key.start_mark.line

    return [text.splitlines()[number] for number in below(yaml.compose(text))]


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_key_has_a_comment(path: Path) -> None:
    found = lines(path.read_text())
    assert found
    assert [line for line in found if not COMMENT.search(line)] == []


def test_a_key_without_a_comment_is_found() -> None:
    text = "defaults: [x]\na: 1 # what\nb: # of these\n  c: 2\n  d: ${e} #\nhydra:\n  f: 1\n"
    found = lines(text)
    assert found == ["a: 1 # what", "  c: 2", "  d: ${e} #"]
    assert [bool(COMMENT.search(line)) for line in found] == [True, False, False]
