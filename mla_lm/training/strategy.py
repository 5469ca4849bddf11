"""How Lightning divides a run among its ranks, DDP or FSDP2, and in which files it saves.

Under FSDP2 a checkpoint holds whole tensors too; each rank reads the file and keeps its part.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.config import TrainerConfig
from mla_lm.errors import UserError
from mla_lm.model.sharding import part, whole
from mla_lm.training import processes as ranks


def strategy_of(cfg: TrainerConfig, precision: str) -> dict[str, Any]:
    """Arguments of the trainer: ranks, how they divide the work, and which files they write."""
    n, here = ranks.world_size(), ranks.local_world_size()
    if n == 1:
        return {"devices": 1, "plugins": [CheckpointFiles()]}
    if cfg.strategy == "fsdp" and precision == "16-mixed":
        raise UserError("precision=16-mixed: FSDP2 has no loss scaling; use 32-true or trainer=ddp")
    return {
        "devices": here,
        "num_nodes": n // here,
        "strategy": Sharded(n)
        if cfg.strategy == "fsdp"
        else DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True),
        "plugins": [CheckpointFiles(), TorchElasticEnvironment()],
        "use_distributed_sampler": False,
    }


class CheckpointFiles(CheckpointIO):
    """Whole, verified, pickle-free files, for any callback that saves.

    `resumed` is what the file to resume holds, already read and checked.
    """

    resumed: dict[str, Any] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        checkpoint_file.write(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        resumed, self.resumed = self.resumed, None
        return resumed or checkpoint_file.read(Path(path))  # nothing in it can be executed anyway

    def remove_checkpoint(self, path: Any) -> None:
        """Only a checkpoint: which files a callback deletes stands in one, old or forged."""
        if Path(path).is_file() and checkpoint_file.is_one(Path(path)):
            Path(path).unlink(missing_ok=True)


class Sharded(ModelParallelStrategy):
    """FSDP2: weights, gradients and moments in parts, which `LanguageModel.configure_model` cuts.

    Checkpoints go through the trainer's `CheckpointIO`, as with every other strategy.
    """

    lightning_restore_optimizer = True

    def __init__(self, world_size: int) -> None:
        super().__init__(world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights on rank zero, None on the others."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole moments on rank zero, by the number of their parameter."""
        return self._gathered(getattr(optimizer, "_optimizer", optimizer).state_dict())

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

    def _gathered(self, tree: Any) -> Any:
        """One tensor after the other: all at once, they may not fit where only parts do."""
        if isinstance(tree, Mapping):
            return {key: self._gathered(value) for key, value in tree.items()}
        if not isinstance(tree, Tensor):
            return tree
        gathered = whole(tree)
        return gathered.cpu() if self.is_global_zero else None
