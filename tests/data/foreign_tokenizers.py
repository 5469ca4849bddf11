"""Byte-level tokenizers as others publish them, and texts to try tokenizers on."""

import random
from functools import cache
from pathlib import Path

import tokenizers
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers

from mla_lm.config import TokenizerConfig
from mla_lm.data import Tokenizer
from tests.data.conftest import END_OF_TEXT

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {
    "llama": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
KINDS = ("ours", *SPLITS)
WORDS = ["a", "Zoë", "it's", "'LL", "don't", "1234567", "½", "²", "終わり", "e\u0301", "🙂", "_x_"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\u00a0", "\u2003"]
CHUNKS = [*WORDS, *SPACES, "...", ";\n", "(", "'"]
ODD = ["", " ", "\r\n\r\n", "\t  x  ", "naïve 終 🙂", "\u2028\x00\x7f", "e\u0301 é", "a" * 5000]
texts = st.one_of(
    st.text(), st.text(alphabet="ab \n\t<|endoftext|>"), st.sampled_from([*ODD, END_OF_TEXT * 3])
)


def library(kind: str) -> tokenizers.Tokenizer:
    """A byte-level BPE as others publish them, with a merge or two of words in use."""
    bpe = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "ours")
    split = [pre_tokenizers.Split(Regex(SPLITS[kind]), "isolated")] if kind in SPLITS else []
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    bpe.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learned = random.Random(0).choices([*CHUNKS, " some words", " def"], k=5000)
    bpe.train_from_iterator(["".join(learned)], trainer)
    return bpe


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer(library(kind).to_str(), end_of_text=END_OF_TEXT)


def stored(folder: Path, bpe: tokenizers.Tokenizer | str) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(bpe if isinstance(bpe, str) else bpe.to_str(), encoding="utf-8")
    return path


def pretrained(path: Path | str, *, end_of_text: str = END_OF_TEXT) -> Tokenizer:
    cfg = TokenizerConfig(
        kind="pretrained", path=str(path), end_of_text=end_of_text, vocab_size=1000
    )
    return Tokenizer.pretrained(cfg)
