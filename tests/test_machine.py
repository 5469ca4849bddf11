from pathlib import Path

import pytest
import torch

from mla_lm import machine
from mla_lm.machine import free_memory, kernels_for


@pytest.mark.parametrize(
    ("n_rows", "dtype", "of_onednn"),
    [
        (1, torch.bfloat16, False),
        (2, torch.bfloat16, False),
        (3, torch.bfloat16, True),
        (1, torch.float32, True),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_few_rows_of_bfloat16_take_torchs_own_kernels(
    monkeypatch: pytest.MonkeyPatch, before: bool, n_rows: int, dtype: torch.dtype, of_onednn: bool
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", before)
    with kernels_for(n_rows, dtype):
        assert torch.backends.mkldnn.enabled == (before and of_onednn)
    assert torch.backends.mkldnn.enabled == before


def test_kernels_are_restored_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), kernels_for(1, torch.bfloat16):
        raise RuntimeError("inside")
    assert torch.backends.mkldnn.enabled


V2 = {"memory.max": 3000, "memory.current": 900, "memory.stat": "file 500\ninactive_file 400\n"}
V1 = {
    "memory.limit_in_bytes": 3000,
    "memory.usage_in_bytes": 900,
    "memory.stat": "inactive_file 1\ntotal_inactive_file 400\n",
}
NONE = {"memory.max": "max", "memory.current": 900, "memory.stat": "inactive_file 400\n"}


@pytest.mark.parametrize(
    ("line", "files", "left"),
    [
        ("0::/", {"": V2}, 2500),  # of a container with a view of its own
        ("0::/job/step", {"job": V2, "job/step": NONE}, 2500),
        ("0::/of/the/host", {"": V2}, 2500),
        ("4:memory:/docker/1", {"memory": V1}, 2500),
        ("4:memory:/job", {"memory": {**V1, "memory.limit_in_bytes": 2**62}}, 4096),
        ("0::/job", {"job": NONE}, 4096),
        ("0::/job", {"job": {**V2, "memory.max": 9000}}, 4096),  # more than the machine has
        ("3:cpuset:/", {}, 4096),
    ],
)
def test_a_container_may_have_less_than_the_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    files: dict[str, dict[str, object]],
    left: int,
) -> None:
    for folder, contents in files.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (tmp_path / folder / name).write_text(f"{content}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4 kB\n")
    (tmp_path / "cgroup").write_text(f"5:devices:/\n{line}\n")
    for name, path in {"MEMORY": "meminfo", "GROUPS": "cgroup", "LIMITS": ""}.items():
        monkeypatch.setattr(machine, name, tmp_path / path)
    assert free_memory("cpu") == left
