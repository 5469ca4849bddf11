import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mla_lm.config.model import PlainRopeConfig
from mla_lm.model.rope import rotary_tables, rotate

WIDTH, THETA, LENGTH = 10, 50.0, 40
PLAIN = PlainRopeConfig(kind="plain", theta=THETA)


def rotate_at(x: Tensor, position: int) -> Tensor:
    """Rotate one vector (WIDTH,) as if it stood at `position`."""
    cos, sin = rotary_tables(LENGTH, WIDTH, PLAIN)
    return rotate(
        x.view(1, 1, WIDTH), cos[position : position + 1], sin[position : position + 1]
    ).flatten()


@given(
    st.integers(0, LENGTH // 2 - 1),
    st.integers(0, LENGTH // 2 - 1),
    st.integers(0, LENGTH // 2),
    st.integers(0, 2**32),
)
def test_scores_depend_on_relative_positions_only(i: int, j: int, shift: int, seed: int) -> None:
    q, k = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        rotate_at(q, i) @ rotate_at(k, j),
        rotate_at(q, i + shift) @ rotate_at(k, j + shift),
        rtol=1e-4,
        atol=1e-4,
    )


def test_bfloat16_is_rotated_in_float32() -> None:
    tables = rotary_tables(LENGTH, WIDTH, PLAIN)
    x = torch.randn(2, LENGTH, 3, WIDTH).bfloat16()
    rotated = rotate(x, *tables)
    assert rotated.dtype == torch.bfloat16
    torch.testing.assert_close(rotated, rotate(x.float(), *tables).bfloat16(), rtol=0, atol=0)
    in_bfloat16 = (
        x[..., 0::2] * tables[0][:, None].bfloat16() - x[..., 1::2] * tables[1][:, None].bfloat16()
    )
    assert not torch.equal(rotated[..., 0::2], in_bfloat16)


def test_tables_are_exact_far_away() -> None:
    cos, sin = rotary_tables(100_000, WIDTH, PLAIN)
    angle = 99_999 * THETA ** (-2 / WIDTH)
    assert cos.dtype == sin.dtype == torch.float32
    assert float(cos[-1, 1]) == pytest.approx(math.cos(angle), abs=1e-6)
    assert float(sin[-1, 1]) == pytest.approx(math.sin(angle), abs=1e-6)
