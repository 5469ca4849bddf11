"""The estimate of training memory against what a step really keeps and a process really takes."""

from functools import partial

import pytest
import torch
from torch import Tensor

from mla_lm import load_config
from mla_lm.bench import steps
from mla_lm.memory import training_memory

FORMATS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
LONG = ("model=nano", "model.mtp_depth=0", "data.seq_len=2304", "model.max_seq_len=2304")
GROUPED = ("model.mtp_depth=0", "model.ffn.execution=grouped_mm")
MODELS = (
    (),
    ("model/attention=gqa", "model.attention.qk_norm=true"),
    ("model/attention=mqa", "model/ffn=dense", "balance=none"),
    ("model.mtp_depth=0", "data.seq_len=384", "model.n_layers=2"),
    ("model.attention.q_lora_rank=64", "model.mtp_depth=2"),
    ("model.dim=384", "model.inter_dim=1024", "model.mtp_depth=0"),
    LONG,  # beyond what a CPU attends to by products
    (*LONG, "model.sizes.head_dim=12"),  # of values, which are padded to the 16 of keys
    (*LONG, "model/attention=gqa"),
    (*LONG, "data.mask_documents=true"),
    GROUPED,
    (*GROUPED, "model.ffn.n_activated_experts=6"),
    (*LONG, "model.ffn.execution=grouped_mm"),  # as on a GPU
)


def kept(words: tuple[str, ...], number_format: str) -> int:
    """Bytes of all storages that autograd keeps of a forward pass, weights left out."""
    cfg = load_config(words)
    side = steps.ours(cfg)
    if cfg.data.mask_documents:
        documents = torch.zeros(4, cfg.data.seq_len, dtype=torch.int64)
        side.model.forward = partial(side.model.forward, documents=documents)
    weights = {p.untyped_storage().data_ptr() for p in side.model.parameters()}
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        steps.autocast(number_format),
    ):
        side.loss(torch.randint(cfg.model.vocab_size, (4, cfg.data.seq_len + 1)))
    return sum(t.untyped_storage().nbytes() for at, t in storages.items() if at not in weights)


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("words", MODELS, ids=lambda words: " ".join(words) or "default")
def test_what_a_step_keeps(words: tuple[str, ...], number_format: str) -> None:
    words = (*words, "data.batch_size=4")
    parts = training_memory(load_config(words), FORMATS[number_format], on_gpu=False)
    estimated = parts["activations"] + parts["copies in bfloat16"]
    assert estimated == pytest.approx(kept(words, number_format), rel=0.06)


def test_a_gpu_keeps_what_fused_kernels_keep() -> None:
    on_gpu, on_cpu = (
        training_memory(load_config(words), "bf16-mixed", on_gpu=on_gpu)
        for words, on_gpu in ((LONG, True), ((*LONG, "model.ffn.execution=grouped_mm"), False))
    )
    assert on_gpu == on_cpu


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_has_its_share(strategy: str) -> None:
    cfg, of_one = (load_config([f"trainer={strategy}", f"data.batch_size={n}"]) for n in (32, 8))
    alone, share = (training_memory(c, "32-true", on_gpu=False) for c in (cfg, of_one))
    parts = training_memory(cfg, "32-true", on_gpu=False, n_processes=4)
    assert parts["activations"] == share["activations"] < 0.3 * alone["activations"]
    n_parts = 4 if strategy == "fsdp" else 1
    for name in ("gradients", "moments"):
        assert parts[name] == alone[name] // n_parts
    smallest = alone["weights"] // n_parts
    assert smallest <= parts["weights"] <= alone["weights"]
    assert (parts["weights"] == smallest) == (strategy == "ddp")  # sharded ones are gathered


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
