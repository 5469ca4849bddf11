"""Token ids to a batch: which ids are predicted, which are padding, where documents begin.

All of it follows from the ids, so loaders and checkpoints store ids only. B batch, N = T + 1.
"""

from typing import NamedTuple

from torch import Tensor

from mla_lm.config import DataConfig
from mla_lm.data.corpora.synthetic import CLOSING, FILLER, OPENING
from mla_lm.data.tokenizer import Tokenizer

IGNORED = -100  # a label no loss or metric counts, as in torch's cross-entropy


class Batch(NamedTuple):
    """Ids (B, N) of one batch, and what follows from them."""

    tokens: Tensor  # (B, N) int64
    labels: Tensor  # (B, N): the ids, or `IGNORED`
    documents: Tensor | None  # (B, N): number of the document within the row; None: do not mask
    counted: Tensor | None  # (B, N) bool: False for padding, left out of expert loads; None: all

    @property
    def inputs(self) -> Tensor:
        """What the model reads: tokens (B, T)."""
        return self.tokens[:, :-1]

    @property
    def input_documents(self) -> Tensor | None:
        """Documents (B, T) of the inputs."""
        return None if self.documents is None else self.documents[:, :-1]

    @property
    def input_counted(self) -> Tensor | None:
        """Which inputs are not padding: (B, T)."""
        return None if self.counted is None else self.counted[:, :-1]


class Annotator:
    """Tokens (B, N) to a `Batch`: documents where `cfg` masks them, labels of synthetic answers."""

    def __init__(self, cfg: DataConfig, tokenizer: Tokenizer) -> None:
        self.end_of_text, self.masked = tokenizer.end_of_text, cfg.mask_documents
        self.graded = cfg.kind == "synthetic"
        if self.graded:
            marks = map(tokenizer.encode, (OPENING, CLOSING, FILLER))
            (self.opening,), (self.closing,), (self.filler,) = marks

    def __call__(self, tokens: Tensor) -> Batch:
        labels, counted = tokens, None
        if self.graded:
            labels = tokens.where(self._answers(tokens), IGNORED)
            counted = tokens != self.filler
        documents = (tokens == self.end_of_text).cumsum(dim=1) if self.masked else None
        return Batch(tokens, labels, documents, counted)

    def _answers(self, tokens: Tensor) -> Tensor:
        """Whether a token stands between `OPENING` and `CLOSING`."""
        opening = tokens == self.opening
        opened = opening.cumsum(dim=1) - (tokens == self.closing).cumsum(dim=1)
        return (opened == 1) & ~opening
