"""Drafts are counted where their target counts."""

import torch

from mla_lm.data.batch import IGNORED, Batch
from mla_lm.objective.metrics import kept_drafts


def test_drafts_count_inside_documents_and_for_graded_tokens() -> None:
    tokens = torch.arange(8)[None]  # the targets of depth 1 are 2 to 7
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])  # leaves out 3 and 4
    labels = tokens.where(tokens != 6, IGNORED)
    batch = Batch(tokens, labels, documents, None)
    greedy = tokens[:, 1:]  # for tokens 1 to 7
    drafts = greedy[:, 1:].clone()
    assert kept_drafts(drafts, greedy, batch, depth=1).tolist() == [3, 3]
    drafts[0, -1] = 0
    assert kept_drafts(drafts, greedy, batch, depth=1).tolist() == [2, 3]
