"""The estimate of training memory against what a step really keeps and a process really takes."""

import pytest
import torch
from torch import Tensor

from mla_lm import load_config
from mla_lm.bench import steps
from mla_lm.memory import training_memory

FORMATS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
MODELS = (
    (),
    ("model/attention=gqa", "model.attention.qk_norm=true"),
    ("model/attention=mqa", "model/ffn=dense", "balance=none"),
    ("model.mtp_depth=0", "data.seq_len=384", "model.n_layers=2"),
    ("model.attention.q_lora_rank=64", "model.mtp_depth=2"),
    ("model.dim=384", "model.inter_dim=1024", "model.mtp_depth=0"),
)


def kept(words: tuple[str, ...], number_format: str) -> int:
    """Bytes of all storages that autograd keeps of a forward pass, weights left out."""
    side = steps.ours(load_config(words))
    weights = {p.untyped_storage().data_ptr() for p in side.model.parameters()}
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        steps.autocast(number_format),
    ):
        side.loss(torch.randint(4096, (4, load_config(words).data.seq_len + 1)))
    return sum(t.untyped_storage().nbytes() for at, t in storages.items() if at not in weights)


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("words", MODELS, ids=lambda words: " ".join(words) or "default")
def test_what_a_step_keeps(words: tuple[str, ...], number_format: str) -> None:
    words = (*words, "data.batch_size=4")
    parts = training_memory(load_config(words), FORMATS[number_format], on_gpu=False)
    estimated = parts["activations"] + parts["copies in bfloat16"]
    assert estimated == pytest.approx(kept(words, number_format), rel=0.06)


def test_checkpointing_keeps_less() -> None:
    plain, checkpointed = (
        training_memory(load_config(words), "32-true", on_gpu=False)
        for words in ((), ("trainer.activation_checkpointing=non_reentrant",))
    )
    assert checkpointed["activations"] < 0.5 * plain["activations"]
    assert {**plain, "activations": 0} == {**checkpointed, "activations": 0}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_those_of_the_optimizer(kind: str) -> None:
    cfg = load_config([f"optim={kind}", "model=nano", "data.seq_len=32", "data.batch_size=1"])
    side = steps.ours(cfg)
    side.step(torch.randint(512, (1, 33)), steps.autocast("float32"))
    state = side.optimizer.state.values()
    moments = sum(t.nbytes for of_one in state for name, t in of_one.items() if name != "step")
    parts = training_memory(cfg, "32-true", on_gpu=False)
    assert parts["moments"] == pytest.approx(moments, rel=0.02)
    assert parts["weights"] == sum(p.nbytes for p in side.model.parameters())
