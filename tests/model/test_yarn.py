"""YaRN against `transformers`, and the configuration of longer contexts."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from mla_lm import load_checkpoint, load_config
from mla_lm.config import ModelConfig, YarnConfig
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.model import Transformer
from mla_lm.model import rope as rope_module
from mla_lm.model.attention import softmax_scale
from mla_lm.model.rope import rotary_tables
from tests.conftest import each_attention, random_tokens, randomized, tiny_config, write_checkpoint
from tests.model.test_cache import CONTEXT as TRAINED
from tests.model.test_cache import SMALL

CONSTANTS = {
    "theta": 1e4,
    "factor": 4.0,
    "original_max_seq_len": 512,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
SETTINGS: list[tuple[int, dict[str, float]]] = [
    (64, {"factor": 40.0, "original_max_seq_len": 4096}),  # DeepSeek-V3
    (64, {"factor": 40.0, "original_max_seq_len": 4096, "mscale": 0.707, "mscale_all_dim": 0.707}),
    (64, {"theta": 5e5, "factor": 8.0, "original_max_seq_len": 8192, "mscale_all_dim": 0.0}),
    (6, {"factor": 4.0, "original_max_seq_len": 256}),
    (14, {"theta": 100.0, "factor": 2.5, "original_max_seq_len": 100, "beta_fast": 8.0}),
    (12, {"theta": 50.0, "factor": 4.0, "beta_fast": 6.5, "beta_slow": 2.5, "mscale": 0.5}),
    (10, {"theta": 100.0, "factor": 3.0, "original_max_seq_len": 32, "mscale_all_dim": 0.3}),
    (8, {"factor": 4.0, "original_max_seq_len": 8}),
    (32, {"factor": 16.0, "original_max_seq_len": 5}),
    (16, {"factor": 4.0, "beta_fast": 3.0, "beta_slow": 3.0}),
    (18, {"factor": 1.0}),
]
SHORT = ("model/rope=yarn", "model.rope.original_max_seq_len=8")  # reaches 32


def yarn(**changes: float) -> YarnConfig:
    return YarnConfig.model_validate({"kind": "yarn", **CONSTANTS, **changes})


def theirs(width: int, rope: YarnConfig) -> tuple[Tensor, float, float]:
    """Frequencies, amplitude, and scale of the softmax for heads of width + 7."""
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    config = deepseek.DeepseekV3Config(
        qk_rope_head_dim=width,
        max_position_embeddings=int(rope.factor * rope.original_max_seq_len),
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": rope.theta,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_max_seq_len,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "mscale": rope.mscale,
            "mscale_all_dim": rope.mscale_all_dim,
        },
    )
    scale = deepseek.yarn_apply_mscale(config.rope_parameters, (width + 7) ** -0.5)
    return *rope_utils._compute_yarn_parameters(config), scale


def check_against_transformers(width: int, changes: dict[str, float]) -> None:
    rope = yarn(**changes)
    frequencies, amplitude, scale = theirs(width, rope)
    cos, sin = rotary_tables(300, width, rope)
    torch.testing.assert_close(torch.atan2(sin[1], cos[1]), frequencies, rtol=2e-6, atol=0)
    assert float(cos[0, 0]) == pytest.approx(amplitude, rel=1e-6)
    assert softmax_scale(width + 7, rope) == pytest.approx(scale, rel=1e-12)
    angles = torch.outer(torch.arange(300.0), frequencies)
    tables = amplitude * angles.cos(), amplitude * angles.sin()
    torch.testing.assert_close((cos, sin), tables, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("width", "changes"), SETTINGS)
def test_equals_transformers(width: int, changes: dict[str, float]) -> None:
    check_against_transformers(width, changes)


def test_an_unsharpened_softmax_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(YarnConfig, "temperature", lambda self, mscale: 1.0)
    with pytest.raises(AssertionError, match=str(71**-0.5)):
        check_against_transformers(*SETTINGS[0])


@pytest.mark.parametrize("name", ["floor", "ceil"])
def test_bounds_left_unrounded_are_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    unrounded = SimpleNamespace(**{**vars(math), name: float})
    monkeypatch.setattr(rope_module, "math", unrounded)
    with pytest.raises(AssertionError, match="not close"):
        check_against_transformers(*SETTINGS[0])


def test_positions_end_where_the_stretch_does() -> None:
    overrides = ("model=nano", "model/rope=yarn", "model.rope.factor=4.0")
    load_config([*overrides, "data.seq_len=1024"])
    with pytest.raises(UserError, match=r"model\.max_seq_len.*at most 1024"):
        load_config([*overrides, "data.seq_len=1025"])


@pytest.mark.parametrize("context", [1, 11, TRAINED])
@pytest.mark.parametrize("overrides", [(), SHORT])
def test_a_context_within_the_trained_one_leaves_positions_alone(
    overrides: tuple[str, ...], context: int
) -> None:
    cfg = tiny_config(*SMALL, *overrides).model
    assert cfg.extended(context) == cfg.model_copy(update={"max_seq_len": context})


def test_a_longer_context_stretches_what_was_trained() -> None:
    own = ("model/rope=yarn", f"model.rope.original_max_seq_len={TRAINED}", "model.rope.mscale=0.7")
    cfg = tiny_config(*SMALL, "model.rope.theta=500.0").model
    once, twice = cfg.extended(4 * TRAINED), cfg.extended(4 * TRAINED).extended(6 * TRAINED)
    assert once.max_seq_len == 4 * TRAINED
    assert once.rope == yarn(theta=500.0, factor=4.0, original_max_seq_len=TRAINED)
    assert once.model_copy(update={"max_seq_len": TRAINED, "rope": cfg.rope}) == cfg
    assert twice == cfg.extended(6 * TRAINED)
    cfg = tiny_config(*SMALL, *own).model
    assert cfg.extended(9 * TRAINED).rope == cfg.rope.model_copy(update={"factor": 9.0})


@given(st.integers(1, 5000), st.integers(1, 20_000))
@example(100, 113)  # int(113 / 100 * 100) == 112
def test_an_extended_configuration_is_valid(trained: int, context: int) -> None:
    assume(context > trained)
    cfg = tiny_config(*SMALL).model.model_copy(update={"max_seq_len": trained, "sizes": None})
    cfg = cfg.extended(context)
    assert ModelConfig.model_validate(cfg.model_dump()) == cfg


@torch.no_grad()
@pytest.mark.parametrize("context", [None, 9, TRAINED, 4 * TRAINED])
@each_attention
def test_a_checkpoint_is_loaded_for_the_context_asked_for(
    attention: tuple[str, ...], context: int | None, tmp_path: Path
) -> None:
    cfg = tiny_config(*SMALL, *attention)
    tokenizer = Tokenizer.train([], vocab_size=257, end_of_text=cfg.data.tokenizer.end_of_text)
    trained = randomized(Transformer(cfg.model)).eval()
    write_checkpoint(tmp_path / "x.ckpt", cfg, tokenizer, trained)
    model, run, _ = load_checkpoint(tmp_path / "x.ckpt", context=context)
    tokens = random_tokens(cfg.model, 1, context or TRAINED)
    logits = model(tokens).logits
    layers = [each.blocks[0].attention for each in (model, trained)]
    if context == 4 * TRAINED:
        assert run.model.rope == yarn(original_max_seq_len=TRAINED)
        tables = rotary_tables(context, cfg.model.attention.rope_dim, run.model.rope)
        torch.testing.assert_close((model.cos, model.sin), tables, rtol=0, atol=0)
        sharper = (1 + 0.1 * math.log(4)) ** 2
        assert layers[0].scale == pytest.approx(sharper * layers[1].scale)
        assert (logits[:, :TRAINED] - trained(tokens[:, :TRAINED]).logits).abs().max() > 1e-2
    else:
        torch.testing.assert_close(logits, trained(tokens).logits, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"model\.max_seq_len"):
        model(random_tokens(cfg.model, 1, (context or TRAINED) + 1))
