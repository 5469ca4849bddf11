"""What the head of a corpus decides: who is held out, and what the tokenizer learns from."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_lm import load_config
from mla_lm.config import DataConfig
from mla_lm.data import Tokenizer, head
from mla_lm.data.corpora import Corpus, Document
from mla_lm.data.split import place, read_head
from mla_lm.errors import UserError
from tests.data.conftest import END_OF_TEXT, some_text
from tests.data.splits import hashed

ALMOST_NONE = 1e-9
VOCAB = 300


def some_texts(n_documents: int, *, n_words: int = 60) -> list[str]:
    return [f"{i} {some_text(n_words, seed=i)}" for i in range(n_documents)]


def below(texts: Sequence[str], fraction: float) -> list[str]:
    return [text for text in texts if hashed(text) < fraction * 2**64]


def corpus_of(
    texts: Sequence[str], *, val: Sequence[str] | None = None, read: list[str] | None = None
) -> Corpus:
    """A corpus in memory that notes in `read` how far it was read."""

    def documents(found: Sequence[str]) -> Iterator[Document]:
        for text in found:
            if read is not None:
                read.append(text)
            yield Document(text.encode(), (text,) if text else ())

    held_out = None if val is None else lambda: documents(val)
    return Corpus("some corpus", {}, None, lambda: documents(texts), held_out)


def learned(texts: Sequence[str]) -> str:
    return Tokenizer.train(texts, vocab_size=VOCAB, end_of_text=END_OF_TEXT).json


@pytest.fixture(scope="module")
def cfg() -> DataConfig:
    words = ["model=nano", "data=text", "data.path=x", f"data.tokenizer.vocab_size={VOCAB}"]
    return load_config([*words, f"data.val_fraction={ALMOST_NONE}"]).data


@pytest.fixture(scope="module")
def bytes_cfg() -> DataConfig:
    words = ["model=nano", "data=text", "data.path=x", "data/tokenizer=bytes"]
    return load_config([*words, f"data.val_fraction={ALMOST_NONE}"]).data


def holding_out(cfg: DataConfig, fraction: float) -> DataConfig:
    return cfg.model_copy(update={"val_fraction": fraction})


@given(key=st.binary(max_size=20))
def test_place_is_the_first_eight_bytes_of_the_hash(key: bytes) -> None:
    assert place(key) == int(hashlib.sha256(key).hexdigest()[:16], 16)


@given(texts=st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=9, unique=True))
def test_smallest_hash_is_always_held_out(bytes_cfg: DataConfig, texts: list[str]) -> None:
    threshold, _ = read_head(bytes_cfg, corpus_of(texts))
    assert [t for t in texts if hashed(t) < threshold] == [min(texts, key=hashed)]


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.6])
def test_fraction_is_respected(cfg: DataConfig, fraction: float) -> None:
    texts = [str(i) for i in range(4000)]
    threshold, _ = read_head(holding_out(cfg, fraction), corpus_of(texts))
    assert threshold == int(fraction * 2**64)
    assert sum(hashed(t) < threshold for t in texts) / 4000 == pytest.approx(fraction, abs=0.03)


def test_explicit_validation_holds_out_nothing(cfg: DataConfig) -> None:
    texts = some_texts(10)
    threshold, tokenizer = read_head(holding_out(cfg, 0.6), corpus_of(texts, val=["v"]))
    assert threshold == 0
    assert tokenizer.json == learned(texts)


@pytest.mark.parametrize("fraction", [ALMOST_NONE, 0.3, 0.6])
def test_tokenizer_learns_from_all_but_the_held_out(cfg: DataConfig, fraction: float) -> None:
    texts = some_texts(12)
    held_out = below(texts, fraction) or [min(texts, key=hashed)]
    _, tokenizer = read_head(holding_out(cfg, fraction), corpus_of(texts))
    assert tokenizer.json == learned([t for t in texts if t not in held_out])
    assert tokenizer.json != learned(texts)


@pytest.mark.parametrize("size", [1000, 3000])
def test_tokenizer_learns_from_the_head_only(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(head, "HEAD", size)
    texts = some_texts(100)
    training = [t for t in texts if hashed(t) >= 0.3 * 2**64]
    n_read = next(n for n in range(100) if sum(map(len, training[:n])) >= size)
    read: list[str] = []
    _, tokenizer = read_head(holding_out(cfg, 0.3), corpus_of(texts, read=read))
    assert tokenizer.json == learned(training[:n_read])
    assert read == texts[: texts.index(training[n_read - 1]) + 1]


def test_a_document_longer_than_the_head_is_read_to_its_length(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD", 1000)
    parts, taken = [some_text(20, seed=i) for i in range(500)], list[str]()

    def long_text() -> Iterator[str]:
        for part in parts:
            taken.append(part)
            yield part

    documents = [Document(b"one", long_text()), Document(b"two", ["text"])]
    corpus = Corpus("c", {}, None, lambda: iter(documents), lambda: iter(()))
    _, tokenizer = read_head(cfg, corpus)
    assert len("".join(taken[:-1])) < 1000 <= len("".join(taken))
    assert tokenizer.json == learned(["".join(taken), "text"])


@pytest.mark.parametrize("size", [100, 1000, 10**6])
def test_split_does_not_depend_on_the_size_of_the_head(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    texts = sorted(some_texts(60), key=lambda t: hashed(t) >= 0.1 * 2**64)  # held out first
    monkeypatch.setattr(head, "HEAD", size)
    assert read_head(holding_out(cfg, 0.1), corpus_of(texts)).threshold == int(0.1 * 2**64)


def test_a_head_without_a_held_out_one_holds_out_its_smallest(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD", 1000)
    texts, read = some_texts(100), list[str]()
    threshold, _ = read_head(cfg, corpus_of(texts, read=read))
    assert 2 < len(read) < 20
    assert threshold == min(map(hashed, read)) + 1


def test_nothing_to_learn_reads_until_the_split_is_known(bytes_cfg: DataConfig) -> None:
    texts, read = some_texts(400), list[str]()
    first = next(i for i, text in enumerate(texts) if hashed(text) < 0.02 * 2**64)
    assert first > 2
    threshold, tokenizer = read_head(holding_out(bytes_cfg, 0.02), corpus_of(texts, read=read))
    assert threshold == int(0.02 * 2**64)
    assert read == texts[: first + 1]
    assert tokenizer.vocab_size == 257


@pytest.mark.parametrize("n_first", [1, 2, 5])
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_held_out_documents_may_come_first(
    cfg: DataConfig, bytes_cfg: DataConfig, kind: str, n_first: int
) -> None:
    texts = some_texts(60)
    held_out = below(texts, 0.3)
    assert len(held_out) > 5
    ordered = held_out[:n_first] + [t for t in texts if t not in held_out]
    base = cfg if kind == "bpe" else bytes_cfg
    assert read_head(holding_out(base, 0.3), corpus_of(ordered)).threshold == int(0.3 * 2**64)


def test_empty_documents_do_not_count(cfg: DataConfig) -> None:
    texts = [t for text in some_texts(8) for t in ("", text)]
    threshold, tokenizer = read_head(cfg, corpus_of(texts))
    kept = [t for t in texts if t]
    assert threshold == min(map(hashed, kept)) + 1
    assert tokenizer.json == learned([t for t in kept if hashed(t) >= threshold])


def test_empty_parts_do_not_hide_a_text(bytes_cfg: DataConfig) -> None:
    documents = [Document(key, ["", "", "text"]) for key in (b"a", b"b", b"c")]
    corpus = Corpus("c", {}, None, lambda: iter(documents), None)
    assert read_head(bytes_cfg, corpus).threshold == min(place(k) for k in (b"a", b"b", b"c")) + 1


@pytest.mark.parametrize(
    ("texts", "val"),
    [
        ([], None),
        (["a"], None),
        (["", "a", ""], None),
        (["", ""], None),
        ([], ["v"]),
        ([""], ["v"]),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_too_little_text_is_refused(
    cfg: DataConfig, bytes_cfg: DataConfig, kind: str, texts: list[str], val: list[str] | None
) -> None:
    with pytest.raises(UserError, match=r"^some corpus: \d document\(s\), too little text"):
        read_head(cfg if kind == "bpe" else bytes_cfg, corpus_of(texts, val=val))


def test_one_document_will_do_beside_an_explicit_validation(cfg: DataConfig) -> None:
    assert read_head(cfg, corpus_of(["a text"], val=["v"])).threshold == 0


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_everything_held_out_is_refused(cfg: DataConfig, bytes_cfg: DataConfig, kind: str) -> None:
    base = cfg if kind == "bpe" else bytes_cfg
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.99999.*no document to train on"):
        read_head(holding_out(base, 1 - 1e-9), corpus_of(some_texts(9)))


def test_an_existing_tokenizer_learns_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.json)
    words = ["model=nano", "data=text", "data.path=x", "data/tokenizer=pretrained"]
    cfg = load_config([*words, f"data.tokenizer.path='{path}'"]).data
    assert read_head(cfg, corpus_of(some_texts(9))).tokenizer.json == tokenizer.json


def test_text_without_spaces_does_not_fill_the_memory_of_the_trainer(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run of characters is a new word there, and a trainer holds them all."""
    monkeypatch.setattr(head, "NOVEL", 400)
    rng = random.Random(0)
    texts = ["".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(90)) for _ in range(40)]
    read: list[str] = []
    read_head(holding_out(cfg, 0.1), corpus_of(texts, read=read))
    assert 4 <= len(read) <= 9
    again: list[str] = []
    read_head(holding_out(cfg, 0.1), corpus_of(texts[:1] * 2 + texts[1:2] * 38, read=again))
    assert len(again) == 40
