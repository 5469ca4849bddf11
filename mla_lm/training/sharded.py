"""FSDP2 with the checkpoints of a single process: whole tensors, which each rank reads."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from mla_lm.model.sharding import part, whole


class Sharded(ModelParallelStrategy):
    """Weights, gradients and moments in `n_ranks` parts; `LanguageModel.configure_model` cuts them.

    Checkpoints go through the trainer's `CheckpointIO`, as with every other strategy.
    """

    lightning_restore_optimizer = True

    def __init__(self, n_ranks: int) -> None:
        super().__init__(n_ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, put together on the first rank."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The moments, put together on the first rank, by the number of their parameter."""
        return self._whole(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """The file, read and verified by this rank."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's part of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        parts = {name: part(t, own[name]) for name, t in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of the moments."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {name: part(t, parameters[number]) for name, t in of_parameter.items()}
                for number, of_parameter in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})

    def _whole(self, tree: Any) -> Any:
        """One tensor after the other, into the memory of the rank that writes; None on the others.

        All at once on every device, they would not fit where only the parts do.
        """
        if isinstance(tree, Mapping):
            return {key: self._whole(value) for key, value in tree.items()}
        if not isinstance(tree, Tensor):
            return tree
        put_together = whole(tree)
        return put_together.cpu() if self.is_global_zero else None
