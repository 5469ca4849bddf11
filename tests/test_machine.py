import pytest
import torch

from mla_lm.machine import kernels_for


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
