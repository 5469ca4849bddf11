"""Text to ids and back without loss, in pieces too; tokenizers of others are so or refused."""

import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from mla_lm import load_config
from mla_lm.config import TokenizerConfig
from mla_lm.data import Tokenizer
from mla_lm.data import tokenizer as module
from mla_lm.data.tokenizer import pieces
from tests.conftest import one_line
from tests.data.conftest import END_OF_TEXT, some_text

LIBRARY = tokenizers.Tokenizer
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
ADDED = ["<tool_call>", "終 end", "   ", "\n\t"]
SPECIAL = ["<|im_start|>", "終<|x|>"]
texts = st.one_of(
    st.text(),
    st.text(alphabet="ab \n\t<|endoftext|>"),
    st.sampled_from([*ODD, END_OF_TEXT * 3]),
    st.lists(st.sampled_from([*CHUNKS, *ADDED, *SPECIAL])).map("".join),
)
chunks = st.lists(st.sampled_from(CHUNKS), max_size=12).map("".join)
long_texts = st.lists(chunks, max_size=12).map(lambda c: "".join(t + " some words" for t in c))
each_kind = pytest.mark.parametrize("kind", [*KINDS, "bytes", "added"])
each_foreign = pytest.mark.parametrize("kind", KINDS)


def library(kind: str) -> LIBRARY:
    """A byte-level BPE as others publish them, with a merge or two of words in use."""
    bpe = LIBRARY(models.BPE())
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
    """One of `KINDS`, one token per byte, or one with added tokens, special and not."""
    if kind == "bytes":
        return Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)
    bpe = library("llama" if kind == "added" else kind)
    if kind == "added":
        bpe.add_tokens([AddedToken(content, normalized=False) for content in ADDED])
        bpe.add_special_tokens(SPECIAL)
    return Tokenizer(bpe.to_str(), end_of_text=END_OF_TEXT)


@each_kind
@given(batch=st.lists(texts, max_size=4))
def test_no_character_and_no_byte_is_lost(kind: str, batch: list[str]) -> None:
    tokenizer = tokenizer_of(kind)
    encoded = tokenizer.encode_batch(batch)
    assert encoded == [tokenizer.encode(text) for text in batch]
    for ids, text in zip(encoded, batch, strict=True):
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()
        assert tokenizer.n_bytes(ids) == len(text.encode())
        assert tokenizer.end_of_text not in ids


@each_kind
def test_bytes_of_each_token_are_what_it_decodes_to(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
    for i, found in enumerate(tokenizer.token_bytes):
        assert found.decode(errors="replace") == tokenizer.decode([i])
        assert len(found) == tokenizer.byte_lengths[i]
    assert tokenizer.byte_lengths[tokenizer.end_of_text] == 0


@each_kind
def test_json_holds_everything(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    again = Tokenizer(tokenizer.json, end_of_text=END_OF_TEXT)
    assert (again.json, again.end_of_text) == (tokenizer.json, tokenizer.end_of_text)
    assert again.token_bytes == tokenizer.token_bytes


@pytest.mark.parametrize("vocab_size", [257, 300])
def test_training_gives_the_size_asked_for_and_the_same_again(vocab_size: int) -> None:
    corpus = [some_text(300, seed=seed) for seed in range(20)]
    first, second, other = (
        Tokenizer.train(iter(given_texts), vocab_size=vocab_size, end_of_text=END_OF_TEXT)
        for given_texts in (corpus, corpus, corpus[:5])
    )
    assert first.vocab_size == vocab_size
    assert first.json == second.json
    assert (first.json != other.json) == (vocab_size > 257)
    if vocab_size == 257:
        assert np.delete(first.byte_lengths, first.end_of_text).tolist() == [1] * 256


@each_foreign
@given(text=long_texts, piece=st.integers(16, 23), parted=st.booleans())
def test_pieces_have_the_ids_of_the_whole(kind: str, text: str, piece: int, parted: bool) -> None:
    tokenizer = tokenizer_of(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        found = list(pieces(list(text) if parted else [text]))
    assert "".join(found) == text
    assert [i for ids in tokenizer.encode_batch(found) for i in ids] == tokenizer.encode(text)
    assert len(found) > 1 or len(text) < 9 * piece


@each_foreign
@pytest.mark.parametrize("unit", ["a", "終", " ", "\n", "9", ";\n \n", "  \n", "🙂\t", "1 2 "])
def test_pieces_of_a_text_without_words_keep_it(
    kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    tokenizer, short = tokenizer_of(kind), unit * (50 // len(unit))
    found = list(pieces([unit * 201]))
    assert len(found) > 1
    assert tokenizer.decode([i for ids in map(tokenizer.encode, found) for i in ids]) == unit * 201
    if unit not in ("a", "1 2 "):
        ids = [i for piece in pieces([short]) for i in tokenizer.encode(piece)]
        assert ids == tokenizer.encode(short)


@pytest.mark.parametrize("kind", ["ours", "qwen", "bytes"])
@pytest.mark.parametrize("prompt", ["def ", "    ", " ", "a  "])
def test_a_prompt_that_ends_in_a_space_leaves_it_to_the_first_token(kind: str, prompt: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids, allowed = tokenizer.encode_prompt(prompt)
    assert allowed.any()
    assert not allowed[tokenizer.end_of_text]
    for first in np.flatnonzero(allowed):
        assert tokenizer.decode([*ids, int(first)]).startswith(prompt)
    ids, allowed = tokenizer.encode_prompt("def")
    assert ids == [tokenizer.end_of_text, *tokenizer.encode("def")]
    assert allowed.all()


def stored(folder: Path, bpe: LIBRARY) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(bpe.to_str(), encoding="utf-8")
    return path


def pretrained(path: Path | str, *, end_of_text: str = END_OF_TEXT) -> Tokenizer:
    keys: Any = {"kind": "pretrained", "path": str(path), "vocab_size": 1000}
    return Tokenizer.pretrained(TokenizerConfig(**keys, end_of_text=end_of_text))


@pytest.mark.parametrize(
    "setting",
    [
        {"padding": {"length": 50, "pad_token": "<pad>"}},
        {"truncation": {"max_length": 3}},
        {"post_processor": processors.TemplateProcessing("<pad> $A", None, [("<pad>", 0)])},
        {"normalizer": normalizers.NFC()},
        {"normalizer": normalizers.Sequence([normalizers.NFC()])},
        {"dropout": 0.5},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_changes_or_adds_to_text_is_ignored_in_a_file_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    bpe = library("llama")
    for key, value in setting.items():
        if isinstance(value, dict):
            getattr(bpe, f"enable_{key}")(**value)
        else:
            setattr(bpe.model if key == "dropout" else bpe, key, value)
    stored(tmp_path, bpe)
    monkeypatch.setenv("HOME", str(tmp_path))
    batch = [some_text(30, seed=1), "", "def x", "e\u0301 A\u030a \u212b \u1100\u1161"]
    for place in (tmp_path / "tokenizer.json", tmp_path, "~/tokenizer.json"):
        assert pretrained(place).encode_batch(batch) == tokenizer_of("llama").encode_batch(batch)


def test_ids_may_have_holes() -> None:
    content = json.loads(library("ours").to_str())
    vocab = content["model"]["vocab"]
    vocab |= {t: i + 100 for t, i in vocab.items() if i >= 300}
    tokenizer = Tokenizer(json.dumps(content), end_of_text=END_OF_TEXT)
    assert tokenizer.vocab_size == tokenizer.byte_lengths.size == 440
    assert not tokenizer.byte_lengths[300:400].any()
    text = "".join(CHUNKS) + some_text(60, seed=3)
    assert max(tokenizer.encode(text)) >= 400
    assert tokenizer.difference(text) is None


@pytest.mark.parametrize(("n_added", "expected"), [(0, 384), (44, 384), (45, 448)])
def test_the_model_has_room_for_the_vocabulary(tmp_path: Path, n_added: int, expected: int) -> None:
    bpe = library("llama")
    bpe.add_tokens([f"<added {i}>" for i in range(n_added)])
    words = ["data/tokenizer=pretrained", f"data.tokenizer.path={stored(tmp_path, bpe)}"]
    cfg = load_config(["model=nano", *words])
    assert cfg.data.tokenizer.vocab_size == pretrained(tmp_path).vocab_size == 340 + n_added
    assert cfg.model.vocab_size == expected
    cfg = load_config(["model=nano", "data/tokenizer=bytes"])
    assert (cfg.data.tokenizer.vocab_size, cfg.model.vocab_size) == (257, 320)


def refusal(path: Path | str, *, end_of_text: str = END_OF_TEXT) -> str:
    said = one_line(lambda: pretrained(path, end_of_text=end_of_text))
    assert said.startswith(f"data.tokenizer.path={path}: ")
    return said.removeprefix(f"data.tokenizer.path={path}: ")


@pytest.mark.parametrize("content", [None, b"", b"not JSON\nat all", b"{}", b"\xff\xfe\x00"])
def test_a_path_without_a_tokenizer_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    assert refusal(path).startswith("no such file" if content is None else "no tokenizer")
    words = ["model=nano", "data/tokenizer=pretrained", f"data.tokenizer.path={path}"]
    assert str(path) in one_line(lambda: load_config(words))


def test_end_of_text_must_be_a_special_token(tmp_path: Path) -> None:
    said = refusal(stored(tmp_path, library("llama")), end_of_text="a")
    assert said == f"no special token a, it has <pad>, {END_OF_TEXT}"


@pytest.mark.parametrize("place", ["vocabulary", "added tokens"])
@pytest.mark.parametrize("index", [2**22, 4 * 10**9, 2**64, -1, "7", True])
def test_an_id_that_takes_gigabytes_is_refused(tmp_path: Path, index: Any, place: str) -> None:
    content = json.loads(library("ours").to_str())
    if place == "vocabulary":
        content["model"]["vocab"]["a"] = index
    else:
        content["added_tokens"][0]["id"] = index
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    rule = f"a token has the id {index!r}, ids are below 4,194,304"
    assert refusal(tmp_path / "tokenizer.json") == f"no tokenizer ({rule})"
    with pytest.raises(ValueError, match="ids are below"):
        Tokenizer(json.dumps(content), end_of_text=END_OF_TEXT)


def test_a_tokenizer_file_too_long_to_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    os.truncate(tmp_path / "tokenizer.json", 2**34)  # no disk is used
    assert refusal(tmp_path) == "no tokenizer (17,179,869,184 bytes, at most 134,217,728 are read)"


LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
DASHES = pre_tokenizers.Split("-", "removed")
LETTERS = sorted({*pre_tokenizers.ByteLevel.alphabet()} - {"Ċ"})
LOSSY: dict[str, tuple[str, Any]] = {
    "no line end": ("model", models.BPE({c: i for i, c in enumerate(LETTERS, start=2)}, [])),
    "metaspace": ("pre_tokenizer", pre_tokenizers.Metaspace()),
    "other decoder": ("decoder", decoders.BPEDecoder()),
    "space in front": ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "dashes dropped": ("pre_tokenizer", pre_tokenizers.Sequence([DASHES, LEVEL])),
    "lower case": (
        "normalizer",
        normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
    ),
    "compatibility forms": ("normalizer", normalizers.NFKC()),
    "space swallowed": ("added", AddedToken("<mask>", lstrip=True)),
    # the library takes the letters of `naïve` for the alphabet of bytes
    "added letters": ("added", AddedToken("naïve", normalized=False)),
}


@pytest.mark.parametrize(("stage", "part"), LOSSY.values(), ids=LOSSY)
def test_a_tokenizer_that_loses_text_is_refused(tmp_path: Path, stage: str, part: Any) -> None:
    bpe = library("llama")
    if stage == "added":
        bpe.add_tokens([part])
    else:
        setattr(bpe, stage, part)
    said = refusal(stored(tmp_path, bpe))
    assert said.startswith("not a lossless byte-level tokenizer: ")
