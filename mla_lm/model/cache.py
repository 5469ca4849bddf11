"""Preallocated KV caches for decoding.

B rows, T new tokens, L cached tokens, G key/value heads. MLA caches one tensor per layer, the
latent and the rotated key (`kv_lora_rank + qk_rope_head_dim` elements per token); MHA, GQA and MQA
cache keys and values. Rows may have different lengths: a batch of ragged prompts is padded on the
right, run once and cut back by `truncate`, and so are rejected drafts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mla_lm.config import MLAConfig, ModelConfig
from mla_lm.errors import UserError
from mla_lm.model.positions import Positions


class LayerCache:
    """The cached tensors (B, G, capacity, width) of one attention layer."""

    def __init__(self, tensors: Sequence[Tensor], *, absorb: bool | None) -> None:
        self.tensors, self.absorb = tuple(tensors), absorb

    def update(self, at: Positions, *new: Tensor) -> tuple[Tensor, ...]:
        """Write `new`, each (B, G, T, width); return all tokens (B, G, L, width) in its dtype."""
        for cached, tensor in zip(self.tensors, new, strict=True):
            if isinstance(at.slots, slice):
                cached[:, :, at.slots] = tensor
            else:
                rows = torch.arange(len(cached), device=cached.device).unsqueeze(1)
                cached[rows, :, at.slots] = tensor.transpose(1, 2).to(cached.dtype)
        pairs = zip(self.tensors, new, strict=True)
        return tuple(cached[:, :, : at.cache_len].type_as(tensor) for cached, tensor in pairs)


class Cache:
    """The caches of all layers and the number of cached tokens per row (`lengths`).

    `absorb` makes MLA attend in latent space (True), on materialised keys and values (False), or
    whichever is cheaper for the number of new tokens (None).
    """

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        batch_size: int,
        capacity: int,
        n_layers: int,
        dtype: torch.dtype,
        device: torch.device,
        absorb: bool | None = None,
    ) -> None:
        self.capacity, self.dtype = capacity, dtype
        self.lengths = [0] * batch_size
        shapes = [(batch_size, heads, capacity, width) for heads, width in cached_widths(cfg)]
        self.layers = [
            LayerCache(
                [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes], absorb=absorb
            )
            for _ in range(n_layers)
        ]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for layer in self.layers for t in layer.tensors)

    def reserve(self, n_new: int, cos: Tensor, sin: Tensor) -> Positions:
        """Append `n_new` tokens to every row: their positions and slots, for the layers to write.

        cos, sin are the tables of all positions. Raises UserError beyond them or the capacity.
        """
        before = self.lengths
        cache_len = max(before, default=0) + n_new
        limits = {"model.max_seq_len": len(cos), "the cache's capacity": self.capacity}
        for name, limit in limits.items():
            if cache_len > limit:
                raise UserError(f"{cache_len} tokens exceed {name}={limit}")
        self.lengths = [length + n_new for length in before]
        if len(set(before)) < 2:  # rows of equal length
            slots = slice(cache_len - n_new, cache_len)
            mask: Tensor | None = None
            if 1 < n_new < cache_len:
                mask = torch.ones(1, 1, n_new, cache_len, dtype=torch.bool, device=cos.device)
                mask = mask.tril(cache_len - n_new)
            return Positions(cos[slots], sin[slots], mask, slots, cache_len)
        starts = torch.tensor(before, device=cos.device).unsqueeze(1)
        where = starts + torch.arange(n_new, device=cos.device)  # (B, T)
        mask = torch.arange(cache_len, device=cos.device) <= where.unsqueeze(-1)  # (B, T, L)
        return Positions(cos[where], sin[where], mask.unsqueeze(1), where, cache_len)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Drop the cached tokens of row b after its first `lengths[b]`."""
        if any(new > old or new < 0 for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"cannot cut rows of {self.lengths} tokens to {list(lengths)}")
        self.lengths = list(lengths)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row b becomes a copy of what was row `rows[b]`; rows may be left out or repeated."""
        for layer in self.layers:
            index = torch.tensor(rows, dtype=torch.int64, device=layer.tensors[0].device)
            layer.tensors = tuple(t.index_select(0, index) for t in layer.tensors)
        self.lengths = [self.lengths[row] for row in rows]


def cached_widths(cfg: ModelConfig) -> list[tuple[int, int]]:
    """Heads and width of each tensor that a layer caches."""
    attention = cfg.attention
    if isinstance(attention, MLAConfig):
        return [(1, attention.kv_lora_rank + attention.qk_rope_head_dim)]
    return [(attention.n_kv_heads, attention.head_dim)] * 2
