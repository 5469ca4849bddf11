"""What holds for any use of a cache: its size, the two ways of MLA, the MTP modules' own caches."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.config import MLAConfig
from mla_lm.cost import cache_elements_per_token
from mla_lm.model import Transformer
from mla_lm.model.attention import MultiHeadLatentAttention
from tests.conftest import each_attention, random_tokens, randomized, tiny_config
from tests.model.test_cache import CLOSE, CONTEXT, KINDS, SMALL, Decoding, build, each_path

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SHAPES = [
    {},
    {"v_head_dim": 5},
    {"v_head_dim": 23},
    {"kv_lora_rank": 7},  # half the width of the heads: absorbing always pays
    {"kv_lora_rank": 50, "qk_rope_head_dim": 12},
]
each_shape = pytest.mark.parametrize("changes", SHAPES, ids=str)

operations = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.lists(st.integers(1, 7), min_size=1, max_size=1)),
        st.tuples(st.just("truncate"), st.lists(st.integers(0, 9), min_size=4, max_size=4)),
        st.tuples(st.just("reorder"), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
    ),
    max_size=8,
)


@pytest.mark.parametrize(
    ("name", "absorb"), [("mla", None), ("mla", True), ("mla", False), ("gqa", None)]
)
@settings(max_examples=20)
@given(operations, st.integers(0, 2**32))
def test_any_use_of_a_cache_equals_its_rows_alone(
    name: str, absorb: bool | None, steps: list[tuple[str, list[int]]], seed: int
) -> None:
    torch.manual_seed(seed)
    decoding = Decoding(build(*KINDS[name]), 3, absorb=absorb)
    for step, numbers in [*steps, ("feed", [2])]:
        lengths = decoding.lengths
        if step == "truncate":
            cuts = zip(lengths, numbers, strict=False)
            decoding.truncate(*(max(0, length - cut) for length, cut in cuts))
        elif step == "reorder":
            decoding.reorder(*(number % len(lengths) for number in numbers))
        elif room := CONTEXT - max(lengths):
            decoding.feed(min(room, *numbers))


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "state_of"), [(1, "post_norm"), (3, "pre_norm"), (7, "post_norm")]
)
@each_path
def test_mtp_modules_in_chunks_equal_one_run(
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    absorb: bool | None,
    size: int,
    state_of: str,
) -> None:
    """Every depth in chunks of the depth before, which itself ran in chunks."""
    model = build(*overrides)
    monkeypatch.setattr(model, "cfg", model.cfg.model_copy(update={"mtp_input": state_of}))
    tokens = random_tokens(model.cfg, 2, CONTEXT)
    expected = model(tokens).mtp
    cache = model.new_cache(2, CONTEXT, absorb=absorb)
    state = torch.cat([model(c, cache=cache).mtp_input for c in tokens.split(size, dim=1)], dim=1)
    for depth, wanted in enumerate(expected, start=1):
        cache = model.new_cache(2, CONTEXT - depth, mtp=True, absorb=absorb)
        pair = (state[:, : CONTEXT - depth], tokens[:, depth:])
        chunks = zip(*(each.split(size, dim=1) for each in pair), strict=True)
        state = torch.cat([model.mtp_step(depth, *chunk, cache=cache) for chunk in chunks], dim=1)
        torch.testing.assert_close(state, wanted, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_attention
def test_bytes_are_those_of_the_formula(attention: tuple[str, ...], dtype: torch.dtype) -> None:
    model = Transformer(tiny_config(*SMALL, *attention).model).to(dtype)
    batch, capacity = 3, 11
    cache = model.new_cache(batch, capacity)
    tensors = [tensor for layer in cache.layers for tensor in layer.tensors]
    numbers = batch * capacity * cache_elements_per_token(model.cfg)
    assert cache.n_bytes == numbers * dtype.itemsize
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == cache.n_bytes
    assert {tensor.dtype for tensor in tensors} == {dtype}
    assert len(cache.layers) == model.cfg.n_layers
    assert model.new_cache(batch, capacity, mtp=True).n_bytes * model.cfg.n_layers == cache.n_bytes
    model(random_tokens(model.cfg, batch, 5), cache=cache)
    cache.reorder([2, 0])
    assert cache.n_bytes * batch == numbers * dtype.itemsize * 2


def build_mla(changes: dict[str, int]) -> tuple[MultiHeadLatentAttention, MLAConfig]:
    cfg = tiny_config(*SMALL).model
    assert isinstance(cfg.attention, MLAConfig)
    mla = cfg.attention.model_copy(update=changes)
    return randomized(MultiHeadLatentAttention(cfg, mla)).double(), mla


@torch.no_grad()
@pytest.mark.parametrize("n_new", [1, 4, 9])
@each_shape
def test_absorbed_equals_materialised(changes: dict[str, int], n_new: int) -> None:
    layer, mla = build_mla(changes)
    cache_len = 9
    q_nope = torch.randn(2, n_new, layer.n_heads, mla.qk_nope_head_dim, dtype=torch.float64)
    q_rope = torch.randn(2, n_new, layer.n_heads, mla.qk_rope_head_dim, dtype=torch.float64)
    cached = torch.randn(2, 1, cache_len, layer.kv_lora_rank + layer.rope_dim, dtype=torch.float64)
    latent, k_rope = cached.squeeze(1).split((layer.kv_lora_rank, layer.rope_dim), dim=-1)
    mask = torch.rand(2, 1, n_new, cache_len) < 0.6
    mask[..., 0] = True
    for allowed in (mask, mask[:1], None)[: 2 + (n_new in (1, cache_len))]:
        absorbed = layer.absorbed(q_nope, q_rope, cached, allowed)
        materialised = layer.materialised(q_nope, q_rope, latent, k_rope, allowed)
        assert materialised.std() > 0.1
        torch.testing.assert_close(absorbed, materialised, **EXACT)


@each_shape
def test_the_way_with_fewer_operations_is_chosen(changes: dict[str, int]) -> None:
    """Counted per cached token: scores, and the sum that they weight."""
    layer, mla = build_mla(changes)
    nope, rope, v, rank = layer.nope_dim, layer.rope_dim, layer.v_dim, layer.kv_lora_rank
    for n_new in range(1, 200):
        absorbed = n_new * ((rank + rope) + rank)
        materialised = rank * (nope + v) + n_new * ((nope + rope) + v)
        assert layer.absorbs(n_new) == (absorbed < materialised)
    assert layer.absorbs(1)
    assert layer.absorbs(199) == (mla.kv_lora_rank == 7)


@torch.no_grad()
@pytest.mark.parametrize(
    ("absorb", "n_new", "unused"),
    [
        (None, 11, "materialised"),
        (None, 12, "absorbed"),  # 12 (2 * 20 - 15) = 20 * 15
        (True, 12, "materialised"),
        (False, 1, "absorbed"),
    ],
)
def test_the_number_of_new_tokens_chooses_unless_told(
    monkeypatch: pytest.MonkeyPatch, absorb: bool | None, n_new: int, unused: str
) -> None:
    model = build("model.attention.v_head_dim=5")
    monkeypatch.setattr(MultiHeadLatentAttention, unused, None)
    model(random_tokens(model.cfg, 2, n_new), cache=model.new_cache(2, CONTEXT, absorb=absorb))
