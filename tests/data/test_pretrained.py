"""Tokenizers that others trained: read without loss, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from mla_lm import load_config
from tests.data.conftest import END_OF_TEXT, one_line, some_text
from tests.data.foreign_tokenizers import CHUNKS, library, pretrained, stored, tokenizer_of

Change = Callable[[tokenizers.Tokenizer], Any]
EXISTING = ("model=nano", "data/tokenizer=pretrained")


def test_pretrained_is_a_file_or_a_folder_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path, library("llama"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (path, tmp_path, "~/tokenizer.json"):
        assert pretrained(place).json == tokenizer_of("llama").json
        assert pretrained(place).vocab_size == 340


@pytest.mark.parametrize(
    "normalizer", [normalizers.NFC(), normalizers.Sequence([normalizers.NFC()])]
)
@pytest.mark.parametrize("text", ["e\u0301 A\u030a", "é", "\u212b \u1100\u1161"])
def test_text_is_not_normalized(tmp_path: Path, normalizer: Any, text: str) -> None:
    bpe = library("qwen")
    bpe.normalizer = normalizer
    tokenizer = pretrained(stored(tmp_path, bpe))
    assert tokenizer.difference(text) is None


def begun(bpe: tokenizers.Tokenizer) -> None:
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, bpe.token_to_id(END_OF_TEXT))]
    )


def dropout(bpe: tokenizers.Tokenizer) -> None:
    bpe.model.dropout = 0.5


@pytest.mark.parametrize(
    "setting",
    [
        lambda bpe: bpe.enable_padding(length=50, pad_token="<pad>"),
        lambda bpe: bpe.enable_truncation(max_length=3),
        begun,
        dropout,
    ],
    ids=["padding", "truncation", "post-processor", "dropout"],
)
def test_settings_for_batches_chats_and_training_are_ignored(
    tmp_path: Path, setting: Change
) -> None:
    bpe = library("llama")
    setting(bpe)
    tokenizer, batch = pretrained(stored(tmp_path, bpe)), [some_text(30, seed=1), "", "def x"]
    assert tokenizer.encode_batch(batch) == tokenizer_of("llama").encode_batch(batch)


def test_added_tokens_count_with_their_bytes_and_special_ones_are_text(tmp_path: Path) -> None:
    bpe = library("llama")
    bpe.add_tokens([AddedToken("終 end", normalized=False)])
    bpe.add_special_tokens(["<|im_start|>"])
    tokenizer = pretrained(stored(tmp_path, bpe))
    ids = tokenizer.encode("def 終 endx終 end<|im_start|> y")
    added, special = (bpe.get_vocab()[token] for token in ("終 end", "<|im_start|>"))
    assert ids.count(added) == 2
    assert special not in ids
    assert tokenizer.token_bytes[added] == "終 end".encode()
    assert tokenizer.token_bytes[special] == b""


def test_ids_may_have_holes(tmp_path: Path) -> None:
    content = json.loads(library("ours").to_str())
    vocab = content["model"]["vocab"]
    vocab |= {t: i + 100 for t, i in vocab.items() if i >= 300}
    tokenizer = pretrained(stored(tmp_path, json.dumps(content)))
    assert tokenizer.vocab_size == tokenizer.byte_lengths.size == 440
    assert not tokenizer.byte_lengths[300:400].any()
    text = "".join(CHUNKS) + some_text(60, seed=3)
    assert max(tokenizer.encode(text)) >= 400
    assert tokenizer.difference(text) is None


@pytest.mark.parametrize("n_added", [0, 44, 45])
def test_model_has_room_for_a_pretrained_vocabulary(tmp_path: Path, n_added: int) -> None:
    bpe = library("llama")
    bpe.add_tokens([f"<added {i}>" for i in range(n_added)])
    path = stored(tmp_path, bpe)
    cfg = load_config([*EXISTING, f"data.tokenizer.path={path}"])
    assert cfg.data.tokenizer.vocab_size == pretrained(path).vocab_size == 340 + n_added
    assert cfg.model.vocab_size == (448 if n_added == 45 else 384)


def refusal(path: Path | str, *, end_of_text: str = END_OF_TEXT) -> str:
    said = one_line(lambda: pretrained(path, end_of_text=end_of_text))
    assert said.startswith(f"data.tokenizer.path={path}: ")
    return said.removeprefix(f"data.tokenizer.path={path}: ")


def test_a_path_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        assert "no such file" in refusal(path)
    words = [*EXISTING, f"data.tokenizer.path={tmp_path / 'missing'}"]
    assert "missing" in one_line(lambda: load_config(words))


@pytest.mark.parametrize("content", [b"", b"not JSON\nat all", b"{}", b"\xff\xfe\x00"])
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert "no tokenizer" in refusal(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("end_of_text", ["</s>", "a"])
def test_end_of_text_must_be_a_special_token(tmp_path: Path, end_of_text: str) -> None:
    said = refusal(stored(tmp_path, library("llama")), end_of_text=end_of_text)
    assert said == f"no special token {end_of_text}, it has <pad>, {END_OF_TEXT}"


def word_piece(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    other = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    other.decoder = decoders.WordPiece()
    return other


def unigram(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    other = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0)], 0, False))
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    other.decoder = decoders.Metaspace()
    return other


def metaspace(bpe: tokenizers.Tokenizer) -> None:
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()


def nothing(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    other = tokenizers.Tokenizer(models.BPE())
    other.add_special_tokens([END_OF_TEXT])
    return other


def other_decoder(bpe: tokenizers.Tokenizer) -> None:
    bpe.decoder = decoders.BPEDecoder()


def split_by(*stages: pre_tokenizers.PreTokenizer) -> Change:
    def change(bpe: tokenizers.Tokenizer) -> None:
        bpe.pre_tokenizer = pre_tokenizers.Sequence([*stages])

    return change


def normalized(*stages: normalizers.Normalizer) -> Change:
    def change(bpe: tokenizers.Tokenizer) -> None:
        bpe.normalizer = normalizers.Sequence([*stages])

    return change


def whole_words(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    other = tokenizers.Tokenizer(models.WordLevel({**vocabulary, "?": 256}, unk_token="?"))
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = decoders.ByteLevel()
    other.add_special_tokens([END_OF_TEXT])
    return other


def word_ends(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    content = json.loads(bpe.to_str())
    content["model"]["end_of_word_suffix"] = "</w>"
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def without(byte: bytes) -> Change:
    """A vocabulary that cannot spell a byte."""

    def change(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        content = json.loads(bpe.to_str())
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        letters = set(level.pre_tokenize_str(byte.decode())[0][0])
        model = content["model"]
        model["merges"] = [m for m in model["merges"] if not letters & set("".join(m))]
        model["vocab"] = {t: i for t, i in model["vocab"].items() if not letters & set(t)}
        return tokenizers.Tokenizer.from_str(json.dumps(content))

    return change


LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
PREFIX = pre_tokenizers.ByteLevel(add_prefix_space=True)
LOSSY: dict[str, Change] = {
    "word piece": word_piece,
    "unigram": unigram,
    "metaspace": metaspace,
    "no stages": nothing,
    "other decoder": other_decoder,
    "space in front": split_by(pre_tokenizers.Digits(True), PREFIX),
    "lower case": normalized(normalizers.NFC(), normalizers.Lowercase()),
    "compatibility forms": normalized(normalizers.NFKC()),
    "white space dropped": split_by(pre_tokenizers.WhitespaceSplit(), LEVEL),
    "dashes dropped": split_by(pre_tokenizers.Split("-", "removed"), LEVEL),
    "space swallowed": lambda bpe: bpe.add_tokens([AddedToken("<mask>", lstrip=True)]) and None,
    "whole words": whole_words,
    "word ends": word_ends,
    "no line end": without(b"\n"),
    "no é": without("é".encode()),
    # the library takes the letters of `naïve` for the alphabet of bytes
    "added letters": lambda bpe: bpe.add_tokens([AddedToken("naïve", normalized=False)]) and None,
}


@pytest.mark.parametrize("change", LOSSY.values(), ids=LOSSY)
def test_tokenizer_that_loses_text_is_refused(tmp_path: Path, change: Change) -> None:
    bpe = library("llama")
    path = stored(tmp_path, change(bpe) or bpe)
    assert refusal(path).startswith("not a lossless byte-level tokenizer: ")
