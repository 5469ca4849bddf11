import os
from pathlib import Path

import pytest

from mla_lm import memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
UNLIMITED = 2**63 - 4096  # as version 1 writes it


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "4096"}, 4096),
        ("0::/a/b", {"a/b/memory.max": "4096", "a/memory.max": "8192"}, 4096),
        ("0::/", {"memory.max": "4096"}, 4096),
        ("0::/a", {"b/memory.max": "4096"}, PHYSICAL),
        ("0::/", {}, PHYSICAL),
        ("2:cpu:/a\n1:memory:/a", {"memory/a/memory.limit_in_bytes": "4096"}, 4096),
        ("1:memory:/outside", {"memory/memory.limit_in_bytes": "4096"}, 4096),
        ("1:memory:/", {"memory/memory.limit_in_bytes": f"{UNLIMITED}"}, PHYSICAL),
        (None, {"memory.max": "4096"}, PHYSICAL),
    ],
)
def test_the_lowest_limit_counts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    groups: str | None,
    limits: dict[str, str],
    expected: int,
) -> None:
    for name, limit in limits.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(f"{limit}\n")
    if groups is not None:
        (tmp_path / "groups").write_text(f"{groups}\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    assert memory.cpu_memory() == expected
