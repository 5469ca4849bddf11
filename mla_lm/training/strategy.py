"""How Lightning shares a run among its processes."""

from typing import Any

from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from mla_lm.config import TrainerConfig
from mla_lm.training import processes as ranks
from mla_lm.training.checkpoint_io import CheckpointFiles
from mla_lm.training.sharded import Sharded


def strategy_of(cfg: TrainerConfig) -> dict[str, Any]:
    """Arguments of the trainer: processes, how they share the work, and what files they write."""
    n = ranks.n_ranks()
    if n == 1:
        return {"devices": 1, "plugins": [CheckpointFiles()]}
    here = ranks.n_local_ranks()
    return {
        "devices": here,
        "num_nodes": n // here,
        "strategy": Sharded(n)
        if cfg.strategy == "fsdp"
        else DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True),
        "plugins": [CheckpointFiles(), TorchElasticEnvironment()],
        "use_distributed_sampler": False,
    }
