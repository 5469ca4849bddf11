"""Tokenizers that are refused: files that hold none, and those that lose text."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from mla_lm import load_config
from mla_lm.errors import UserError
from tests.data.conftest import END_OF_TEXT
from tests.data.foreign_tokenizers import library, pretrained, stored


def refusal(path: Path | str, *, end_of_text: str = END_OF_TEXT) -> str:
    with pytest.raises(UserError) as caught:
        pretrained(path, end_of_text=end_of_text)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert said.startswith(f"data.tokenizer.path={path}: ")
    return said.removeprefix(f"data.tokenizer.path={path}: ")


def test_pretrained_file_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.json")


def test_pretrained_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "not JSON\nat all", "{}", "[1, 2]", '{"model": null}'])
def test_pretrained_file_that_holds_something_else_is_named(tmp_path: Path, content: str) -> None:
    assert "no tokenizer" in refusal(stored(tmp_path, content))


def test_pretrained_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    assert "no tokenizer" in refusal(tmp_path / "tokenizer.json")


def test_config_names_a_missing_tokenizer(tmp_path: Path) -> None:
    words = ["data/tokenizer=pretrained", f"data.tokenizer.path={tmp_path / 'missing'}"]
    with pytest.raises(UserError, match=r"^[^\n]*missing[^\n]*$"):
        load_config(["model=nano", *words])


@pytest.mark.parametrize("end_of_text", ["</s>", "a", "some words"])
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


def metaspace(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return bpe


def nothing(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    other = tokenizers.Tokenizer(models.BPE())
    other.add_special_tokens([END_OF_TEXT])
    return other


def other_decoder(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    bpe.decoder = decoders.BPEDecoder()
    return bpe


def prefix_space(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return bpe


def inner_prefix_space(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level])
    bpe.pre_tokenizer = pre_tokenizers.Sequence([inner])
    return bpe


def lowercase(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    bpe.normalizer = normalizers.Lowercase()
    return bpe


def inner_lowercase(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return bpe


def whitespace(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), level])
    return bpe


def removed(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("-", "removed"), level])
    return bpe


def swallowed_space(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    bpe.add_tokens([AddedToken("<mask>", lstrip=True)])
    return bpe


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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (word_piece, "not a byte-level tokenizer"),
        (unigram, "not a byte-level tokenizer"),
        (metaspace, "not a byte-level tokenizer"),
        (nothing, "not a byte-level tokenizer"),
        (other_decoder, "not a byte-level tokenizer"),
        (prefix_space, "'two words' comes back as ' two words'"),
        (inner_prefix_space, "comes back as ' two words'"),
        (lowercase, "Lowercase"),
        (inner_lowercase, "Lowercase"),
        (whitespace, ""),
        (removed, ""),
        (swallowed_space, ""),
        (whole_words, ""),
        (word_ends, ""),
    ],
)
def test_tokenizer_that_loses_text_is_refused(
    tmp_path: Path,
    change: Callable[[tokenizers.Tokenizer], tokenizers.Tokenizer],
    reason: str,
) -> None:
    path = stored(tmp_path, change(library("llama")))
    assert reason in refusal(path)


@pytest.mark.parametrize(("byte", "missing"), [(b"\n", 1), (b"\xc3\xa9", 2), (b"\xff", 1)])
def test_tokenizer_without_a_byte_is_refused(tmp_path: Path, byte: bytes, missing: int) -> None:
    content = json.loads(library("ours").to_str())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written = {b"\xff": "ÿ"}.get(byte) or level.pre_tokenize_str(byte.decode())[0][0]
    merges = [m for m in content["model"]["merges"] if not set(written) & set("".join(m))]
    kept = {t: i for t, i in content["model"]["vocab"].items() if not set(written) & set(t)}
    content["model"] |= {"vocab": kept, "merges": merges}
    assert f"no token for {missing} of the 256 bytes" in refusal(
        stored(tmp_path, json.dumps(content))
    )


def test_an_added_token_that_is_decoded_as_bytes_is_refused(tmp_path: Path) -> None:
    """The library takes the letters of `naïve` for the alphabet of bytes."""
    bpe = library("llama")
    bpe.add_tokens([AddedToken("naïve", normalized=False)])
    assert "naïve" in refusal(stored(tmp_path, bpe))
