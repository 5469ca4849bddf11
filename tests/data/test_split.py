"""Which documents are held out, and what the tokenizer learns from."""

import random
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.config import DataConfig
from mla_lm.data import Tokenizer, split
from mla_lm.data.corpora import Corpus, Document, open_corpus
from mla_lm.data.split import choose_split, cut_above, pieces_of, with_parts
from tests.conftest import one_line
from tests.data.conftest import (
    END_OF_TEXT,
    corpus_config,
    hashed,
    some_text,
    split_of,
    tokenizer_keys,
)

ALMOST_NONE = 1e-9


def config(kind: str = "bpe", fraction: float = ALMOST_NONE) -> DataConfig:
    return corpus_config("text", tokenizer=tokenizer_keys(kind), val_fraction=fraction)


def some_texts(n_documents: int) -> list[str]:
    return [f"{i} {some_text(60, seed=i)}" for i in range(n_documents)]


def corpus_of(
    texts: Sequence[str], *, val: Sequence[str] | None = None, read: list[str] | None = None
) -> Corpus:
    """A corpus in memory that notes in `read` how far it was read."""

    def documents(found: Sequence[str]) -> Iterator[Document]:
        for text in found:
            if read is not None:
                read.append(text)
            yield Document(text.encode(), ("", text))

    held_out = None if val is None else lambda: documents(val)
    return Corpus("some corpus", {}, lambda: documents(texts), held_out)


def learned(texts: Sequence[str]) -> str:
    return Tokenizer.train(texts, vocab_size=300, end_of_text=END_OF_TEXT).json


@given(texts=st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=9, unique=True))
def test_the_lowest_position_is_always_held_out(texts: list[str]) -> None:
    threshold, _ = choose_split(config("bytes"), corpus_of(["", *texts]))
    assert [t for t in texts if hashed(t) < threshold] == [min(texts, key=hashed)]


@pytest.mark.parametrize("fraction", [0.05, 0.6])
def test_the_fraction_is_respected(fraction: float) -> None:
    texts = [str(i) for i in range(4000)]
    threshold, _ = choose_split(config(fraction=fraction), corpus_of(texts))
    assert threshold == int(fraction * 2**64)
    assert sum(hashed(t) < threshold for t in texts) / 4000 == pytest.approx(fraction, abs=0.03)


@pytest.mark.parametrize("fraction", [ALMOST_NONE, 0.6])
def test_the_tokenizer_learns_from_all_but_the_held_out(fraction: float) -> None:
    texts = some_texts(12)
    _, tokenizer = choose_split(config(fraction=fraction), corpus_of(texts))
    assert tokenizer.json == learned(split_of({t: t for t in texts}, fraction)["train"])
    assert tokenizer.json != learned(texts)
    threshold, tokenizer = choose_split(config(fraction=fraction), corpus_of(texts, val=["v"]))
    assert (threshold, tokenizer.json) == (0, learned(texts))


@pytest.mark.parametrize("size", [1000, 3000])
def test_the_tokenizer_learns_from_the_start_of_the_corpus_only(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(split, "SAMPLE", size)
    held_out_first = sorted(some_texts(100), key=lambda t: hashed(t) >= 0.1 * 2**64)
    for texts in (some_texts(100), held_out_first):
        training = [t for t in texts if hashed(t) >= 0.1 * 2**64]
        n_read = next(n for n in range(100) if sum(map(len, training[:n])) >= size)
        read: list[str] = []
        threshold, tokenizer = choose_split(config(fraction=0.1), corpus_of(texts, read=read))
        assert tokenizer.json == learned(training[:n_read])
        assert read == texts[: texts.index(training[n_read - 1]) + 1]
        held_out = [t for t in read if t not in training]
        assert threshold == int(0.1 * 2**64 if held_out else min(map(hashed, read)) + 1)


def test_a_document_longer_than_the_sample_is_read_to_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(split, "SAMPLE", 1000)
    parts = iter([some_text(20, seed=i) for i in range(500)])
    documents = [Document(b"one", parts), Document(b"two", ["text"])]
    corpus = Corpus("c", {}, lambda: iter(documents), lambda: iter(()))
    _, tokenizer = choose_split(config(), corpus)
    taken = [some_text(20, seed=i) for i in range(500 - len(list(parts)))]
    assert len("".join(taken[:-1])) < 1000 <= len("".join(taken))
    assert tokenizer.json == learned(["".join(taken), "text"])


def test_nothing_to_learn_reads_until_the_split_is_known(tokenizer: Tokenizer) -> None:
    texts = some_texts(400)
    first = next(i for i, text in enumerate(texts) if hashed(text) < 0.02 * 2**64)
    assert first > 2
    for kind, existing in (("bytes", None), ("pretrained", tokenizer)):
        read: list[str] = []
        cfg = config("bytes", fraction=0.02)
        cfg = cfg.model_copy(update={"tokenizer": cfg.tokenizer.model_copy(update={"kind": kind})})
        found = choose_split(cfg, corpus_of(texts, read=read), tokenizer=existing)
        assert read == texts[: first + 1]
        assert (found[0], found[1].vocab_size) == (int(0.02 * 2**64), 300 if existing else 257)


def test_text_without_spaces_does_not_fill_the_memory_of_the_trainer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every run of characters is a new word there, and a trainer holds them all."""
    monkeypatch.setattr(split, "DISTINCT", 400)
    rng = random.Random(0)
    texts = ["".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(90)) for _ in range(40)]
    for given_texts, n_read in ((texts, range(4, 10)), ([texts[0]] * 2 + [texts[1]] * 38, [40])):
        read: list[str] = []
        choose_split(config(fraction=0.1), corpus_of(given_texts, read=read))
        assert len(read) in n_read


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
@pytest.mark.parametrize(
    ("texts", "val", "fraction"),
    [
        ([], None, 0.1),
        (["", "a", ""], None, 0.1),
        ([""], ["v"], 0.1),
        (["the same"] * 9, None, 0.1),
        (some_texts(9), None, 1 - 1e-9),
    ],
    ids=["nothing", "one", "none beside val", "equal", "large fraction"],
)
def test_a_split_without_training_documents_is_refused(
    kind: str, texts: list[str], val: list[str] | None, fraction: float
) -> None:
    said = one_line(lambda: choose_split(config(kind, fraction), corpus_of(texts, val=val)))
    n_texts = len([t for t in texts if t])
    assert said.startswith(f"some corpus: {n_texts} document(s) with text, none left for training")
    assert (f"data.val_fraction={fraction}" in said) == (val is None)


def parts_of(corpus: Corpus, cfg: DataConfig) -> list[Document]:
    return [*with_parts(corpus, cut_above(cfg, corpus)).train()]


def long_corpus(parts: Iterable[str]) -> Corpus:
    """One document beside a short one."""
    documents = Document(b"long.txt", parts), Document(b"short.txt", ["short"])
    return Corpus("long", {}, lambda: iter(documents), None)


@pytest.mark.parametrize("block", [7, 2**20])
def test_a_long_document_is_cut_at_blank_lines(block: int) -> None:
    content = "verse\n終わり\n \r\n" * 2000 + "no newline at the end"
    parts = [content[at : at + block] for at in range(0, len(content), block)]
    *found, short = parts_of(long_corpus(parts), config(fraction=0.1))
    texts = ["".join(document.parts) for document in found]
    assert "".join(texts) == content
    assert all(text.endswith("終わり\n \r\n") for text in texts[:-1])
    assert all(split.PART <= len(text) < split.PART + 20 for text in texts[:-1])
    assert [document.key for document in found] == [text.encode() for text in texts]
    assert (short.key, *short.parts) == (b"short.txt", "short")


@settings(max_examples=50)
@given(lines=st.lists(st.text() | st.sampled_from(["", "a\r", "\x0c\u2028\x85"]), min_size=1))
def test_cutting_loses_no_character(lines: list[str]) -> None:
    content = "x" + "\n".join(lines) * 9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "PART", 37)
        *found, _ = parts_of(long_corpus(content), config(fraction=0.1))
    assert "".join(part for document in found for part in document.parts) == content


SIZES = {  # characters of each document, and whether they stay whole
    "a text and a readme": ([530_000, 780], False),
    "one": ([300_000], False),
    "two": ([200_000, 200_000], False),
    "twelve": ([40_000] * 12, False),
    "a large one among many": ([*[4000] * 50, 900_000, *[4000] * 50], False),
    "a thousand": ([3000] * 1000, True),
}


@pytest.mark.parametrize(("sizes", "whole"), SIZES.values(), ids=SIZES)
def test_both_splits_have_their_share_whatever_the_sizes(sizes: list[int], whole: bool) -> None:
    rng, cfg = random.Random(0), config("bytes", fraction=0.05)
    documents = [
        Document(f"{i}.txt".encode(), ["".join(rng.choices("abc \n", k=size))])
        for i, size in enumerate(sizes)
    ]
    corpus = Corpus("sizes", {}, lambda: iter(documents), None)
    found = with_parts(corpus, cut_above(cfg, corpus))
    assert ([d.key for d in found.train()] == [d.key for d in documents]) == whole
    threshold, _ = choose_split(cfg, found)
    held_out = sum(len(text) for side, _, text in pieces_of(found, threshold) if side == "val")
    assert 0.02 < held_out / sum(sizes) < 0.1


def test_documents_stay_whole_that_are_short_or_validated_on_others() -> None:
    """The default corpus keeps its split: its largest file is shorter than the validation split."""
    cfg = corpus_config("stdlib")
    corpus = open_corpus(cfg)
    assert [d.key for d in parts_of(corpus, cfg)] == [d.key for d in corpus.train()]
    given_val = long_corpus(["x\n" * 9999])._replace(val=lambda: iter(()))
    assert [d.key for d in parts_of(given_val, config())] == [b"long.txt", b"short.txt"]
    rows = corpus_config("synthetic", n_documents=3, seq_len=9000)
    assert len(parts_of(open_corpus(rows), rows)) == 3
