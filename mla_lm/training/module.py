"""The Lightning module: losses to one number, one optimizer, one balance update per step.

Knows neither files nor the command line. B batch, T tokens, L MoE layers, E experts.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from mla_lm.checkpoint.record import RECORD, Record
from mla_lm.config import RunConfig
from mla_lm.data.batch import Annotator
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.model import Transformer
from mla_lm.model.sharding import whole
from mla_lm.objective import balance
from mla_lm.objective.losses import count_targets, loss_terms
from mla_lm.objective.metrics import (
    N_SUMS,
    bits_per_byte,
    kept_drafts,
    loss_sums,
    summarize,
    text_sums,
)
from mla_lm.objective.optimizer import build_optimizer
from mla_lm.objective.schedules import bias_speed, lr_multiplier, mtp_weight
from mla_lm.training.processes import reduce_over_ranks


class LanguageModel(L.LightningModule):
    """Trains a `Transformer` on batches (B, T + 1) of token ids.

    `load` (L, E) is what the experts received in the optimizer step just done, and `loss` its mean,
    both over the global batch. A step whose loss or gradient is not finite is skipped: it changes
    no weight, moment or bias, and leaves `load` and `loss` None, as they are between steps.
    """

    byte_lengths: Tensor

    def __init__(self, cfg: RunConfig, tokenizer: Tokenizer, record: Record) -> None:
        super().__init__()
        self.cfg, self.tokenizer, self.record = cfg, tokenizer, record
        self.model = Transformer(cfg.model)
        self.model.n_tokens = tokenizer.vocab_size
        self.routers = self.model.routers()
        self.row_loads: list[Tensor] = []  # (L, B, E) of each micro-batch since the last step
        self.load: Tensor | None = None
        self.n_targets = torch.ones(0)  # of the step: mean over micro-batches and ranks, by depth
        self.micro_losses: list[Tensor] = []  # `terms` of each micro-batch since the last step
        self.terms: tuple[str, ...] = ()
        self.mtp_weight = 0.0  # of the step
        self.loss: float | None = None
        self.n_skipped = 0  # steps, in a row
        self.is_logged = False  # logging every step costs 5 % of a step of 200 ms
        lengths = torch.from_numpy(tokenizer.byte_lengths)
        self.register_buffer("byte_lengths", lengths, persistent=False)
        self.annotate = Annotator(cfg.data, tokenizer)

    def configure_model(self) -> None:
        """Cut the weights where the strategy shards them."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            assert self.device_mesh is not None
            self.model.shard_blocks(self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        if self.cfg.trainer.compile and self.device.type != "mps":
            with self.trainer.precision_plugin.forward_context():
                self.model.compile_blocks()

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        self.load = self.loss = None
        cfg, batch = self.cfg, self.annotate(tokens)
        if not self.micro_losses:
            self.n_targets = self.count_targets_of_step(tokens)
        out = self.model(
            batch.inputs,
            documents=batch.input_documents,
            logits=False,
            checkpointing=cfg.trainer.activation_checkpointing,
        )
        head = self.model.lm_head.weight
        terms, nats = loss_terms(out, batch, head, cfg.balance, self.n_targets, self.over_ranks)
        max_steps = cfg.trainer.max_steps
        self.mtp_weight = mtp_weight(self.global_step, cfg=cfg.loss, max_steps=max_steps)
        weights = {
            "ce": 1.0,
            "mtp": self.mtp_weight,
            "sequence_balance": cfg.balance.sequence_loss_weight,
            "switch_balance": cfg.balance.switch_loss_weight,
        }
        loss = sum((weights[name] * term for name, term in terms.items()), torch.zeros(()))
        if out.routing:
            self.row_loads.append(balance.expert_load(out.routing, batch.input_counted))
        step = self.global_step + 1
        every = cfg.trainer.log_every_n_steps
        self.is_logged = step % every == 0 or step in (1, max_steps)
        own: Any = self.trainer
        own.log_every_n_steps = 1 if step == 1 else every  # Lightning would leave the first out
        found = {"loss": loss, **terms}
        if self.is_logged:
            of_text = text_sums(nats, batch.labels[:, 1:], self.byte_lengths)
            sums = [each.sum().float() for each in of_text]
            found |= dict(zip(("nats", "tokens", "bytes"), sums, strict=True))
        self.terms = tuple(found)
        self.micro_losses.append(torch.stack([*found.values()]).detach())
        return loss

    def count_targets_of_step(self, first: Tensor) -> Tensor:
        """Targets by depth, mean over the micro-batches and ranks of the step that `first` begins.

        Known before its micro-batches have run, so that their losses add up to that of one batch.
        """
        loader: Any = self.trainer.train_dataloader
        tokens = torch.cat((first, loader.rest_of_step().to(first.device)))
        n_targets = count_targets(self.annotate(tokens), self.cfg.model.mtp_depth)
        return self.over_ranks(n_targets / (len(tokens) // len(first)))

    def over_ranks(self, values: Tensor, how: Literal["mean", "sum"] = "mean") -> Tensor:
        """The mean or the sum over all ranks, without gradient."""
        return reduce_over_ranks(values, how)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm, or drop a gradient that is not finite, on all ranks alike.

        Lightning has undone the loss scale of 16-mixed before.
        """
        if self.mtp_weight == 0:  # neither balance losses, decay nor old momenta move the modules
            for p in self.model.mtp.parameters():
                p.grad = None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        parameters = [p for p in self.parameters() if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(grads))
        means = self.over_ranks(torch.stack(self.micro_losses).mean(dim=0))
        *values, length = torch.cat((means, norm.view(1))).tolist()  # the only wait for a GPU
        found = dict(zip(self.terms, values, strict=True))
        loss = found["loss"]
        if self.is_logged:
            nats, n_tokens, n_bytes = map(found.pop, ("nats", "tokens", "bytes"))
            found |= {"text_loss": nats / (n_tokens or 1), "bpb": bits_per_byte(nats, n_bytes)}
            found |= {"grad_norm": length, "lr": optimizer.param_groups[0]["lr"]}
            if scaler is not None:
                found["loss_scale"] = scaler.get_scale()
            self.log_dict({f"train/{name}": value for name, value in found.items()})
        if not (math.isfinite(loss) and math.isfinite(length)):
            optimizer.zero_grad()
            if scaler is not None and math.isfinite(loss) and scaler.get_scale() > 1:
                return  # an overflow in float16: the scaler skips the step and lowers its scale
            self.n_skipped += 1
            what = "loss" if math.isfinite(length) else "gradient"
            self.print(f"step {self.global_step + 1} skipped: the {what} is not finite")
            return
        self.loss, self.n_skipped = loss, 0
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step at the rate of the schedule, then move the biases by the load of the global batch.

        The closure runs the last micro-batch, so the load is complete only afterwards.
        """
        cfg, max_steps = self.cfg, self.cfg.trainer.max_steps
        for group in optimizer.param_groups:
            rate = lr_multiplier(self.global_step, cfg=cfg.optim, max_steps=max_steps)
            group["lr"] = cfg.optim.lr * rate
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        row_loads, self.row_loads, self.micro_losses = self.row_loads, [], []
        if self.n_skipped >= self.cfg.trainer.max_skipped_steps:
            raise UserError(
                f"stopped at step {self.global_step + 1}: trainer.max_skipped_steps="
                f"{self.n_skipped} in a row had a loss or gradient that is not finite"
            )
        if not row_loads or self.loss is None:
            return
        rows = torch.cat(row_loads, dim=1)
        self.load = self.over_ranks(rows.sum(dim=1), "sum")
        speed = bias_speed(self.global_step, cfg=cfg.balance, max_steps=max_steps)
        for (name, router), load in zip(self.routers.items(), self.load, strict=True):
            if name.startswith("mtp_") and self.mtp_weight == 0:
                continue
            balance.update_bias(router.e_score_correction_bias, load, speed=speed)
        if self.is_logged:
            self.log_load(self.load, self.over_ranks(balance.max_violation(rows).mean(dim=1)))

    def log_load(self, load: Tensor, row_violation: Tensor) -> None:
        """Metrics of the load (L, E) and of the mean violation within a row (L,), also by layer."""
        biases = [router.e_score_correction_bias for router in self.routers.values()]
        by_layer = {
            "max_violation": balance.max_violation(load),
            "sequence_violation": row_violation,
            "load_entropy": balance.load_entropy(load),
            "dead_experts": balance.dead_experts(load).float(),
            "bias_range": torch.stack([bias.max() - bias.min() for bias in biases]),
        }
        for name, values in by_layer.items():
            of_all = values.sum() if name == "dead_experts" else values.mean()
            self.log(f"moe/{name}", of_all)
            layers = zip(self.routers, values, strict=True)
            self.log_dict({f"moe/{layer}/{name}": value for layer, value in layers})

    def on_validation_epoch_start(self) -> None:
        self.val_sums = torch.zeros(N_SUMS, dtype=torch.float64)

    def validation_step(self, tokens: Tensor, batch_idx: int) -> None:
        none_left = tokens.shape[0] == 0  # in the last batch; FSDP2 gathers on all ranks still
        batch = self.annotate(tokens.new_zeros(1, tokens.shape[1]) if none_left else tokens)
        first = batch_idx == 0 and self.cfg.model.mtp_depth > 0
        out = self.model(batch.inputs, documents=batch.input_documents, logits=False, mtp=first)
        if first:
            drafts, greedy = self.model.greedy(out.mtp[0]), self.model.greedy(out.hidden)
            kept = kept_drafts(drafts, greedy, batch, depth=1).cpu().double()
            self.drafted = torch.zeros_like(kept) if none_left else kept
        if none_left:
            return
        for logits, labels in self.model.logits_in_parts(out.hidden, batch.labels[:, 1:]):
            self.val_sums += loss_sums(logits, labels, self.byte_lengths).sum(0)

    def on_validation_epoch_end(self) -> None:
        if self.cfg.model.mtp_depth:
            kept, drafts = self.over_ranks(self.drafted, "sum")
            self.log("mtp/acceptance", kept / drafts.clamp(min=1))
        sums = self.over_ranks(self.val_sums, "sum")
        self.log_dict(summarize(sums, graded=self.annotate.graded))

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.model, self.cfg.optim)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record; UserError within an accumulation window, which nothing could resume."""
        if self.micro_losses:
            raise UserError("a checkpoint can only be saved between optimizer steps")
        checkpoint[RECORD] = self.record.stored()
        checkpoint["n_skipped"] = self.n_skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.n_skipped = checkpoint["n_skipped"]
