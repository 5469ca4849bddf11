"""Training on Lightning: the only folder that imports it."""

import logging
import warnings

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware lists, product tips
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec")  # Lightning 2.6 on torch 2.13
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
