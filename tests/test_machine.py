from contextlib import suppress

import pytest
import torch

from mla_lm.machine import kernels_for


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
