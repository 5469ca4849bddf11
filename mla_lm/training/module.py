"""The Lightning module: losses to one number, one optimizer, one balance update a step.

Knows neither files nor the command line. B batch, T tokens, L MoE layers, E experts.
"""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mla_lm import balance, losses
from mla_lm.checkpoint import RECORD, Record
from mla_lm.config import RunConfig
from mla_lm.data.batch import Annotator, Batch
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.evaluation.language_model import N_SUMS, loss_sums, summarize
from mla_lm.model import ModelOutput, Transformer
from mla_lm.optim import build_optimizer, build_schedule, mtp_weight


class LanguageModel(L.LightningModule):
    """Trains a `Transformer` on batches (B, T + 1) of token ids."""

    byte_lengths: Tensor

    def __init__(self, cfg: RunConfig, tokenizer: Tokenizer, record: Record) -> None:
        super().__init__()
        self.cfg, self.tokenizer, self.record = cfg, tokenizer, record
        self.model = Transformer(cfg.model)
        self.routers = self.model.routers()
        self.expert_load: Tensor | None = None  # (L, E) since the last optimizer step
        self.register_buffer(
            "byte_lengths", torch.from_numpy(tokenizer.byte_lengths), persistent=False
        )
        self.annotate = Annotator(cfg.data, tokenizer)
        self.val_sums = torch.zeros(N_SUMS, dtype=torch.float64)

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        batch = self.annotate(tokens)
        out = self.model(batch.inputs, documents=batch.input_documents)
        terms = self.losses(out, batch)
        weights = {
            "ce": 1.0,
            "mtp": mtp_weight(
                self.global_step, cfg=self.cfg.loss, max_steps=self.cfg.trainer.max_steps
            ),
            "balance": self.cfg.balance.sequence_loss_weight,
        }
        loss = sum((weights[name] * term for name, term in terms.items()), torch.zeros(()))
        if out.routing:
            load = balance.expert_load(out.routing)
            self.expert_load = load if self.expert_load is None else self.expert_load + load
        self.log("train/loss", loss)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        return loss

    def losses(self, out: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        """Unweighted terms: `ce`, and `mtp` (mean over depths) and `balance` where they exist."""
        assert out.logits is not None
        terms = {"ce": losses.next_token_loss(out.logits, batch.labels[:, 1:])}
        if out.mtp:
            targets = [
                losses.mtp_targets(batch.labels, depth, batch.documents)
                for depth in range(1, len(out.mtp) + 1)
            ]
            by_depth = [
                losses.next_token_loss(self.model.lm_head(hidden), depth_targets)
                for hidden, depth_targets in zip(out.mtp, targets, strict=True)
            ]
            terms["mtp"] = torch.stack(by_depth).mean()
        if out.routing:
            by_layer = [losses.sequence_balance_loss(routing) for routing in out.routing]
            terms["balance"] = torch.stack(by_layer).sum()
        return terms

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then move the biases by the load of the whole global batch.

        The closure runs the last micro-batch, so the load is complete only afterwards.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.expert_load is None:
            return
        load = self.trainer.strategy.reduce(self.expert_load, reduce_op="sum")
        self.expert_load = None
        for router, layer_load in zip(self.routers, load, strict=True):
            balance.update_bias(
                router.e_score_correction_bias,
                layer_load,
                speed=self.cfg.balance.bias_update_speed,
            )
        self.log("moe/max_violation", balance.max_violation(load).mean())
        self.log("moe/dead_experts", balance.dead_experts(load).float())

    def on_validation_epoch_start(self) -> None:
        self.val_sums = torch.zeros(N_SUMS, dtype=torch.float64)

    def validation_step(self, tokens: Tensor, batch_idx: int) -> None:
        batch = self.annotate(tokens)
        out = self.model(batch.inputs, documents=batch.input_documents, mtp=False)
        self.val_sums += loss_sums(out.logits, batch.labels[:, 1:], self.byte_lengths).cpu()

    def on_validation_epoch_end(self) -> None:
        self.log_dict(summarize(self.val_sums, graded=self.annotate.graded))

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.cfg.optim)
        schedule = build_schedule(optimizer, self.cfg.optim, max_steps=self.cfg.trainer.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = self.record.model_dump()
