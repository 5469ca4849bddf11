"""RMSNorm (arXiv 1910.07467) that stays fused under autocast."""

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """(..., dim) -> (..., dim) in the type of the input.

    Fused kernels want weight and input of one type, and sum in float32 whatever that type is.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)
