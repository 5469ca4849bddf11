"""500 random configurations, valid by construction: each is accepted and takes a training step."""

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from mla_lm import load_config
from mla_lm.checkpoint.record import Record
from mla_lm.config import RunConfig
from mla_lm.data.corpora.synthetic import FILLER
from mla_lm.machine import resolve_precision
from mla_lm.training.module import LanguageModel
from tests.training.small import TOKENIZER, Loader

N = 500
PATHS = ("data.path=x", "data.val_path=null")
CORPORA = {
    "stdlib": (),
    "text": PATHS,
    "jsonl": (*PATHS, "data.field=body"),
    "parquet": (*PATHS, "data.column=body"),
    "hub": ("data.name=owner/set", "data.val_split=test", "data.max_bytes=1000"),
    "wikitext": (),
    "synthetic": ("data.n_documents=20",),
}


def some(draw: Random, low: float, high: float) -> str:
    return f"{draw.uniform(low, high):.4g}"


def words(draw: Random) -> Iterator[str]:
    """Overrides over all groups."""
    yield from of_data(draw, corpus := draw.choice(list(CORPORA)))
    seq_len = draw.randint(16 if corpus == "synthetic" else 2, 24)
    yield f"data.seq_len={seq_len}"
    n_heads, n_layers = draw.randint(1, 4), draw.randint(1, 3)
    n_dense, mtp_depth = draw.randint(0, n_layers), draw.randint(0, min(2, seq_len - 1))
    dim = draw.choice([8, 16, 24, draw.randint(1, 40)])
    yield "model=nano"
    yield f"model.dim={dim}"
    yield f"model.n_heads={n_heads}"
    yield f"model.n_layers={n_layers}"
    yield f"model.n_dense_layers={n_dense}"
    yield f"model.mtp_depth={mtp_depth}"
    yield f"model.inter_dim={draw.randint(1, 40)}"
    yield f"model.tie_embeddings={draw.choice(['true', 'false'])}"
    yield f"model.mtp_input={draw.choice(['post_norm', 'pre_norm'])}"
    yield f"model.norm_eps={some(draw, 1e-7, 1e-4)}"
    yield f"model.init_std={some(draw, 0.001, 0.5)}"
    yield from of_attention(draw, n_heads)
    yield from of_rope(draw, seq_len)
    moe = draw.random() < 0.75
    yield from of_experts(draw, dim) if moe else ("model/ffn=dense",)
    yield from of_balance(draw, has_experts=moe and (n_dense < n_layers or mtp_depth > 0))
    yield from of_optimizer(draw)
    yield from of_trainer(draw)


def of_data(draw: Random, corpus: str) -> Iterator[str]:
    yield f"data={corpus}"
    yield from CORPORA[corpus]
    if corpus == "synthetic":
        yield f"data.task={draw.choice(['recall', 'copying', 'induction'])}"
    elif draw.random() < 0.3:
        yield "data/tokenizer=bytes"
    yield f"model.vocab_size={draw.randint(257, 290)}"
    yield f"data.batch_size={draw.randint(1, 3)}"
    yield f"data.mask_documents={draw.choice(['true', 'false'])}"
    yield f"data.val_fraction={some(draw, 0.01, 0.9)}"
    yield f"data.verify={draw.choice(['sizes', 'full'])}"


def of_attention(draw: Random, n_heads: int) -> Iterator[str]:
    kind = draw.choice(["mla", "mha", "gqa", "mqa"])
    yield f"model/attention={kind}"
    yield f"model.sizes.head_dim={(head_dim := draw.randint(2, 16))}"
    if kind == "mla":
        yield f"model.sizes.kv_lora_rank={draw.randint(1, 24)}"
        yield f"model.attention.q_lora_rank={draw.choice(['null', draw.randint(1, 24)])}"
        yield f"model.sizes.nope_head_dim={draw.randint(1, 12)}"
        yield f"model.sizes.rope_head_dim={2 * draw.randint(1, 5)}"
        return
    yield f"model.attention.rope_head_dim={2 * draw.randint(1, head_dim // 2)}"
    yield f"model.attention.qk_norm={draw.choice(['true', 'false'])}"
    if kind == "gqa":
        divisors = [n for n in range(1, n_heads + 1) if n_heads % n == 0]
        yield f"model.sizes.n_kv_heads={draw.choice(divisors)}"


def of_rope(draw: Random, seq_len: int) -> Iterator[str]:
    yield f"model.max_seq_len={(longest := seq_len + draw.choice([0, 0, 1, 9]))}"
    if draw.random() < 0.5:
        yield f"model.rope.theta={some(draw, 0.5, 1e6)}"
        return
    before = draw.randint(1, 40)
    yield "model/rope=yarn"
    yield f"model.rope.theta={some(draw, 10, 1e6)}"
    yield f"model.rope.original_max_seq_len={before}"
    yield f"model.rope.factor={max(1.0, longest / before) * draw.uniform(1.001, 4)}"
    yield f"model.rope.beta_slow={some(draw, 0.1, 4)}"
    yield f"model.rope.beta_fast={some(draw, 4, 64)}"
    yield f"model.rope.mscale={some(draw, 0, 2)}"
    yield f"model.rope.mscale_all_dim={some(draw, 0, 2)}"


def of_experts(draw: Random, dim: int) -> Iterator[str]:
    n_groups = draw.randint(1, 3)
    of_group = draw.randint(1 if n_groups == 1 else 2, 4)
    topk_groups = draw.randint(1, n_groups)
    width = draw.choice([8, 16, draw.randint(1, 24)])
    ways = ["auto", "padded", "few_tokens", "loop"]
    ways += ["grouped_mm"] if dim % 8 == width % 8 == 0 else []
    yield "model/ffn=moe"
    yield f"model.sizes.moe_inter_dim={width}"
    yield f"model.sizes.n_routed_experts={n_groups * of_group}"
    yield f"model.sizes.n_activated_experts={draw.randint(1, topk_groups * of_group)}"
    yield f"model.ffn.n_groups={n_groups}"
    yield f"model.ffn.topk_groups={topk_groups}"
    yield f"model.ffn.n_shared_experts={draw.randint(0, 2)}"
    yield f"model.ffn.route_scale={some(draw, 0.1, 3)}"
    yield f"model.ffn.norm_topk={draw.choice(['true', 'false'])}"
    yield f"model.ffn.execution={draw.choice(ways)}"
    yield f"model.ffn.force_balance={draw.choice(['false', 'false', 'true'])}"


def of_balance(draw: Random, *, has_experts: bool) -> Iterator[str]:
    if not has_experts:
        yield "balance=none"
        return
    yield f"balance={draw.choice(['bias', 'none', 'sequence', 'switch'])}"
    yield f"balance.bias_decay_fraction={some(draw, 0, 1)}"
    for key in ("bias_update_speed", "sequence_loss_weight", "switch_loss_weight"):
        if draw.random() < 0.3:
            yield f"balance.{key}={some(draw, 0, 0.1)}"


def of_optimizer(draw: Random) -> Iterator[str]:
    yield f"optim={draw.choice(['adamw', 'muon'])}"
    yield f"optim.lr={some(draw, 1e-6, 0.1)}"
    yield f"optim.betas=[{some(draw, 0, 0.99)},{some(draw, 0, 0.999)}]"
    yield f"optim.eps={some(draw, 1e-12, 1e-4)}"
    yield f"optim.weight_decay={some(draw, 0, 1)}"
    yield f"optim.schedule={draw.choice(['cosine', 'wsd'])}"
    yield f"optim.warmup_fraction={some(draw, 0, 0.99)}"
    yield f"optim.decay_fraction={some(draw, 0, 1)}"
    yield f"optim.min_lr_ratio={some(draw, 0, 1)}"
    yield f"loss.mtp_weight={some(draw, 0, 1)}"
    yield f"loss.mtp_final_weight={some(draw, 0, 1)}"
    yield f"loss.mtp_switch={some(draw, 0, 1)}"


def of_trainer(draw: Random) -> Iterator[str]:
    yield f"trainer={draw.choice(['default', 'ddp', 'fsdp'])}"
    yield f"trainer.devices={draw.choice(['auto', 1, 2])}"
    yield f"trainer.max_steps={draw.randint(1, 1000)}"
    yield f"trainer.accumulate_grad_batches={draw.randint(1, 3)}"
    yield f"trainer.gradient_clip_val={draw.choice(['null', some(draw, 0.01, 10)])}"
    ways = ["none", "reentrant", "non_reentrant"]
    yield f"trainer.activation_checkpointing={draw.choice(ways)}"
    yield f"trainer.log_every_n_steps={draw.randint(1, 3)}"
    yield f"trainer.limit_val_batches={draw.choice(['null', 3])}"
    yield f"precision={draw.choice(['auto', '32-true', 'bf16-mixed'])}"
    yield f"checkpoint.every_minutes={draw.choice(['null', 0.5])}"
    yield f"checkpoint.keep={draw.randint(2, 9)}"
    yield f"logger={draw.choice(['csv', 'tensorboard', 'wandb', '[csv,wandb]'])}"
    yield f"callbacks.{draw.choice(['samples', 'experts', 'spikes', 'progress'])}=null"
    yield f"seed={draw.randint(0, 2**32 - 1)}"


def batches(cfg: RunConfig) -> list[Tensor]:
    """The micro-batches of a step: texts that end, an answer to grade, padding in front."""
    shape = (cfg.trainer.accumulate_grad_batches, cfg.data.batch_size, cfg.data.seq_len + 1)
    tokens = torch.randint(257, shape)
    if cfg.data.kind == "synthetic":
        letters = torch.tensor(TOKENIZER.encode("abcdefghijklmnop"))
        tokens = letters[torch.randint(len(letters), shape)]
        tokens[..., -5], tokens[..., -1] = TOKENIZER.encode("=")[0], TOKENIZER.encode(";")[0]
        tokens[..., :4] = TOKENIZER.encode(FILLER)[0]
    tokens[..., 0] = TOKENIZER.end_of_text
    return list(tokens)


class Watch(L.Callback):
    """The loss of the step, None where it was void, and whether gradients were finite."""

    loss: float | None = None
    finite: bool = False

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.finite = len(grads) > 0 and all(bool(grad.isfinite().all()) for grad in grads)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.loss = pl_module.loss


def step(cfg: RunConfig) -> Watch:
    """One optimizer step as training takes it."""
    torch.manual_seed(0)
    record = Record(config={}, command="", tokenizer=TOKENIZER.json, data={}, environment={})
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        precision=resolve_precision(cfg.precision, "cpu"),
        max_steps=1,
        max_epochs=-1,
        accumulate_grad_batches=cfg.trainer.accumulate_grad_batches,
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(LanguageModel(cfg, TOKENIZER, record), Loader(batches(cfg)))
    assert trainer.global_step == 1
    return watch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_valid_configuration_takes_a_step() -> None:
    failed: dict[str, str] = {}
    drawn: Counter[str] = Counter()
    for number in range(N):
        line = list(words(Random(number)))
        try:
            cfg = load_config(line)
            watch = step(cfg)
            assert watch.finite, "a gradient"
            assert watch.loss is not None, "the loss"
        except Exception as error:
            failed[" ".join(line)] = f"{type(error).__name__}: {error}"[:300]
        drawn.update(word for word in line if "/" in word.partition("=")[0])
        drawn.update(word for word in line if word.startswith(("balance=", "data=", "optim=")))
        drawn.update(word for word in line if "execution" in word or "checkpointing" in word)
    print(f"{N} configurations, {len(failed)} failed; {dict(sorted(drawn.items()))}")
    assert not failed, "\n".join(f"{error}\n  {line}" for line, error in failed.items())
    assert min(drawn.values()) >= 5, drawn


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_overflows_is_seen() -> None:
    watch = step(load_config(["model=nano", "data.seq_len=8", "model.init_std=1e30"]))
    assert (watch.finite, watch.loss) == (False, None)
