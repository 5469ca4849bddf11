"""The pass over the newest tokens as a CUDA graph: one launch instead of one for every kernel."""

import torch
from torch import Tensor

from mla_lm.model import ModelOutput, Transformer
from mla_lm.model.cache import Cache
from mla_lm.model.experts import ROW_BLOCK


class Recorded:
    """`model(tokens, cache=cache)` for tokens (B, T), recorded once and replayed.

    A graph repeats the same kernels on the same memory: tokens and lengths are copied to where it
    reads them, and attention runs over the whole capacity of the cache, under a mask. It is
    recorded anew when T changes or rows leave the cache; what it returns lasts until the next call.
    A CPU runs the same pass without a recording, and so do `ROW_BLOCK` tokens and more.
    """

    out: ModelOutput

    def __init__(self, model: Transformer, cache: Cache) -> None:
        self.model, self.cache = model, cache
        self.tokens = self.held = torch.empty(0)
        self.memory: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: Tensor) -> ModelOutput:
        lengths = self.cache.lengths
        held = torch.tensor(lengths, device=tokens.device)
        memory = self.cache.layers[0].tensors[0]  # another one once rows have left
        if memory is self.memory and tokens.shape == self.tokens.shape:
            self.tokens.copy_(tokens)
            self.held.copy_(held)
        else:
            self.tokens, self.held, self.memory = tokens.clone(), held, memory
            self.cache.held = held
            recordable = tokens.device.type == "cuda" and tokens.numel() < ROW_BLOCK
            self.graph = self._record() if recordable else None
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        self.cache.lengths = [length + tokens.shape[1] for length in lengths]
        return self.out

    def _record(self) -> torch.cuda.CUDAGraph:
        """Run on a side stream first, for what kernels set up once, then record."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        return graph

    def _run(self) -> None:
        """The pass itself; neither lengths nor autocast's copies of weights outlive it."""
        lengths, cached = self.cache.lengths, torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            self.out = self.model(self.tokens, cache=self.cache)
        finally:
            torch.set_autocast_cache_enabled(cached)
            self.cache.lengths = lengths
