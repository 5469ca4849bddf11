"""Where text comes from."""

from mla_lm.data.corpora.document import Corpus, Document
from mla_lm.data.corpora.open import open_corpus

__all__ = ["Corpus", "Document", "open_corpus"]
