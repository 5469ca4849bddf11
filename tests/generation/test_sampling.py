"""Continuations: greedy, seeded, cut to the best k, stopped, and beyond the longest window."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm import Transformer, load_config
from mla_lm.data import Tokenizer
from mla_lm.generation import generate
from mla_lm.model import ModelOutput
from tests.conftest import random_tokens, randomized, tiny_config
from tests.processes import run


class Fixed:
    """Stands in for a Transformer: `logits` (B, n, V) are what row b gives for each new token."""

    cfg = SimpleNamespace(max_seq_len=100)

    def __init__(self, logits: Tensor, *, prompt: int) -> None:
        self.logits, self.prompt = logits, prompt

    def __call__(self, tokens: Tensor, *, logits: bool, mtp: bool) -> ModelOutput:
        step = tokens.shape[1] - self.prompt
        return ModelOutput(self.logits[:, step : step + 1], None, (), ())

    def lm_head(self, hidden: Tensor) -> Tensor:
        return hidden


def rows_that_say(choices: list[list[int]], *, vocab_size: int = 7) -> Any:
    one_hot = torch.nn.functional.one_hot(torch.tensor(choices), vocab_size)
    return Fixed(50.0 * one_hot, prompt=2)


@pytest.fixture
def model() -> Transformer:
    return randomized(Transformer(tiny_config().model)).eval()


@pytest.fixture
def prompt(model: Transformer) -> Tensor:
    return random_tokens(model.cfg, 2, 5)


def greedy_by_hand(model: Transformer, tokens: Tensor, n: int) -> Tensor:
    for _ in range(n):
        logits = model(tokens[:, -model.cfg.max_seq_len :]).logits
        tokens = torch.cat((tokens, logits[:, -1:].argmax(dim=-1)), dim=1)
    return tokens


def test_greedy_is_the_argmax_at_every_step(model: Transformer, prompt: Tensor) -> None:
    got = generate(model, prompt, max_new_tokens=9, temperature=0)
    assert got.dtype == torch.int64
    assert torch.equal(got, greedy_by_hand(model, prompt, 9))
    assert torch.equal(got, generate(model, prompt, max_new_tokens=9, temperature=0, seed=5))


def test_seed_decides(model: Transformer, prompt: Tensor) -> None:
    first, again, other = (
        generate(model, prompt, max_new_tokens=12, temperature=2.0, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[:, :5], prompt)


def test_sampling_leaves_the_global_generator_alone(model: Transformer, prompt: Tensor) -> None:
    before = torch.get_rng_state()
    generate(model, prompt, max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_best_one_of_k_is_greedy(model: Transformer, prompt: Tensor) -> None:
    greedy = generate(model, prompt, max_new_tokens=9, temperature=0)
    assert torch.equal(generate(model, prompt, max_new_tokens=9, temperature=3.0, top_k=1), greedy)


def test_top_k_keeps_the_best_k() -> None:
    logits = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4]).expand(400, 1, 5)
    tokens: Any = torch.zeros(400, 2, dtype=torch.int64)
    fixed: Any = Fixed(logits, prompt=2)
    kept = generate(fixed, tokens, max_new_tokens=1, top_k=3)[:, -1]
    assert set(kept.tolist()) == {0, 2, 4}
    free = generate(fixed, tokens, max_new_tokens=1, top_k=9)[:, -1]
    assert set(free.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.75), (0.5, 0.9), (1e6, 0.5)])
def test_temperature_sharpens_the_choice(temperature: float, share: float) -> None:
    fixed: Any = Fixed(torch.tensor([1.0, 3.0]).log().expand(4000, 1, 2), prompt=2)
    tokens = torch.zeros(4000, 2, dtype=torch.int64)
    chosen = generate(fixed, tokens, max_new_tokens=1, temperature=temperature)[:, -1]
    assert chosen.double().mean().item() == pytest.approx(share, abs=0.03)


def test_stop_waits_for_every_row() -> None:
    says = rows_that_say([[5, 1, 2, 3, 4, 4], [1, 2, 2, 5, 4, 4]])
    tokens = torch.zeros(2, 2, dtype=torch.int64)
    got = generate(says, tokens, max_new_tokens=6, temperature=0, stop=5)
    assert got[:, 2:].tolist() == [[5, 1, 2, 3], [1, 2, 2, 5]]


def test_without_stop_all_tokens_come() -> None:
    says = rows_that_say([[5, 5, 5, 5]])
    got = generate(says, torch.zeros(1, 2, dtype=torch.int64), max_new_tokens=4, temperature=0)
    assert got[:, 2:].tolist() == [[5, 5, 5, 5]]


@pytest.mark.parametrize("length", [30, 32, 45])
def test_window_slides_beyond_the_longest_sequence(model: Transformer, length: int) -> None:
    assert model.cfg.max_seq_len == 32
    tokens = random_tokens(model.cfg, 1, length)
    got = generate(model, tokens, max_new_tokens=6, temperature=0)
    assert got.shape == (1, length + 6)
    assert torch.equal(got, greedy_by_hand(model, tokens, 6))


def test_empty_prompt_is_refused(model: Transformer) -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        generate(model, torch.zeros(1, 0, dtype=torch.int64), max_new_tokens=1)


def test_command_line_prints_the_prompt_first(tmp_path: Path) -> None:
    prompt = "def f(x={1: 2}, **k): # naïve 終\n    return x ="
    cfg = load_config(["model=nano", "data.seq_len=32", f"run_dir={tmp_path}"])
    tokenizer = Tokenizer.train([prompt * 3], vocab_size=300, end_of_text="<|endoftext|>")
    state = randomized(Transformer(cfg.model)).state_dict()
    (tmp_path / "checkpoints").mkdir()
    record = {
        "config": cfg.model_dump(mode="json"),
        "overrides": [],
        "tokenizer": tokenizer.json,
        "data": {},
    }
    content = {
        "mla_lm": record,
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "global_step": 3,
    }
    torch.save(content, tmp_path / "checkpoints" / "step-000003.ckpt")
    words = ("generate", f"ckpt={tmp_path}", "prompt=-", "max_new_tokens=5")
    result = run("-m", "mla_lm", *words, cwd=tmp_path, stdin=prompt)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(prompt)
    assert len(result.stdout.rstrip("\n")) >= len(prompt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_first_token_can_be_limited(temperature: float) -> None:
    cfg = tiny_config().model
    model = randomized(Transformer(cfg))
    first = torch.zeros(cfg.vocab_size - 3, dtype=torch.bool)
    first[[5, 9]] = True
    for seed in range(5):
        tokens = generate(
            model,
            random_tokens(cfg, 2, 4),
            max_new_tokens=2,
            temperature=temperature,
            seed=seed,
            first=first,
        )
        assert set(tokens[:, 4].tolist()) <= {5, 9}
