from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mla_lm import load_config, machine
from mla_lm.cost import training_bytes
from mla_lm.errors import UserError
from mla_lm.machine import DeviceType, hardware, kernels_for, out_of_memory, require_memory


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


def be(patch: pytest.MonkeyPatch, device: str) -> None:
    """A machine with that device, whose CPU has no bfloat16."""
    patch.setattr(torch.cuda, "is_available", lambda: device in ("H200", "T4"))
    patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: device == "H200")
    patch.setattr(torch.cuda, "get_device_name", lambda: device)
    patch.setattr(torch.backends.mps, "is_available", lambda: device == "Mac")
    patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


@pytest.mark.parametrize(
    ("kind", "precision", "accelerator", "found"),
    [
        ("Mac", "auto", "auto", ("mps", "32-true")),
        ("Mac", "32-true", "mps", ("mps", "32-true")),
        ("Mac", "bf16-mixed", "cpu", ("cpu", "bf16-mixed")),
        ("T4", "auto", "auto", ("cuda", "16-mixed")),
        ("T4", "32-true", "gpu", ("cuda", "32-true")),
        ("H200", "auto", "auto", ("cuda", "bf16-mixed")),
        ("H200", "16-mixed", "auto", ("cuda", "16-mixed")),
        ("neither", "auto", "auto", ("cpu", "32-true")),
        ("Mac", "bf16-mixed", "auto", "precision=bf16-mixed: must be 32-true on"),
        ("Mac", "auto", "gpu", "trainer.accelerator=gpu: torch finds no CUDA GPU"),
        ("T4", "bf16-mixed", "auto", "precision=bf16-mixed: must be 16-mixed or 32-true on"),
        ("T4", "auto", "mps", "trainer.accelerator=mps: torch finds no Apple GPU"),
        ("neither", "16-mixed", "auto", "precision=16-mixed: must be 32-true or bf16-mixed on"),
    ],
)
def test_device_and_number_format_of_a_machine(
    kind: str, precision: Any, accelerator: str, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, kind)
    if isinstance(found, tuple):
        here = hardware(precision, accelerator)
        assert (here.device, here.precision) == found
        return
    with pytest.raises(UserError, match=found) as caught:
        hardware(precision, accelerator)
    assert "\n" not in str(caught.value)


def test_an_apple_gpu_out_of_memory_is_recognised() -> None:
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9.03 GB)"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


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


def test_no_share_of_the_matmul_peak_is_above_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it measured in a busy moment only."""
    found = [10.0, 100.0, 20.0]
    monkeypatch.setattr(machine, "product_ceiling", lambda *_: found.pop(0))
    peak = machine.MatmulPeak("32-true", torch.device("cpu"))
    assert [peak.share(flops) for flops in (5.0, 50.0, 101.0)] == [0.5, 0.5, None]
    assert (peak.flops, found) == (100.0, [])
