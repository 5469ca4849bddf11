"""The network; knows nothing of losses, data, Lightning or Hydra."""

from mla_lm.model.moe import Routing
from mla_lm.model.transformer import ModelOutput, Transformer

__all__ = ["ModelOutput", "Routing", "Transformer"]
