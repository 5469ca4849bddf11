from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from mla_lm import load_config, machine
from mla_lm.cost import training_bytes
from mla_lm.errors import UserError
from mla_lm.machine import DeviceType, kernels_for, require_memory


@pytest.mark.parametrize("before", [True, False])
def test_few_rows_of_bfloat16_take_torchs_own_kernels(
    monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Whatever was set before is restored, after an error too."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", before)
    cases = {(2, torch.bfloat16): False, (3, torch.bfloat16): True, (1, torch.float32): True}
    for (n_rows, dtype), of_onednn in cases.items():
        with suppress(RuntimeError), kernels_for(n_rows, dtype):
            assert torch.backends.mkldnn.enabled == (before and of_onednn)
            raise RuntimeError
        assert torch.backends.mkldnn.enabled == before


@pytest.mark.parametrize(
    ("device", "strategy", "share"),
    [("cpu", "ddp", 2), ("cpu", "fsdp", 1 / 2), ("cuda", "ddp", 1), ("cuda", "fsdp", 1 / 4)],
)
def test_a_model_too_large_for_the_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: DeviceType, strategy: str, share: float
) -> None:
    """Four ranks on two machines: two share a machine's memory, or each has a GPU."""
    cfg = load_config(["model=small", f"trainer.strategy={strategy}"])
    needed = int(share * sum(training_bytes(cfg.model, cfg.optim.kind).values()))
    own, other = ("total_memory", "cpu") if device == "cuda" else ("cpu", "total_memory")
    there = {own: needed, other: 0}
    monkeypatch.setattr(machine, "cpu_memory", lambda: there["cpu"])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**there))
    require_memory(cfg, device, n_ranks=4, n_local=2)
    there[own] -= 1
    with pytest.raises(UserError, match=rf"parameters need {needed / 1e9:,.1f} GB .* a smaller"):
        require_memory(cfg, device, n_ranks=4, n_local=2)
