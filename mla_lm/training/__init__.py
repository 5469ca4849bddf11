"""Training on Lightning: the only folder that imports it."""

import logging
import warnings

import lightning.pytorch  # noqa: F401  (sets a level of its own)

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware lists, product tips
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec")  # Lightning 2.6 on torch 2.13
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # in torch 2.13
warnings.filterwarnings("ignore", message=".*sync_dist=True")  # what is logged is reduced already
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
