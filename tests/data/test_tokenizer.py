"""Text to ids and back without loss, and the exact bytes behind each id."""

import json
import random
from collections.abc import Callable
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
from mla_lm.errors import UserError
from tests.data.conftest import END_OF_TEXT, some_text

ODD = ["", " ", "\r\n\r\n", "\t  x  ", "naïve 終 🙂", "\u2028\x00\x7f", "e\u0301 é", "a" * 5000]
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
ADDED = ["<tool_call>", "終 end", "   ", "\n\t"]
SPECIAL = ["<|im_start|>", "終<|x|>"]
CHUNKS = [*WORDS, *SPACES, "...", ";\n", "(", "'"]
texts = st.one_of(
    st.text(), st.text(alphabet="ab \n\t<|endoftext|>"), st.sampled_from([*ODD, END_OF_TEXT * 3])
)
chunks = st.lists(st.sampled_from(CHUNKS), max_size=12).map("".join)
long_texts = st.lists(chunks, max_size=12).map(lambda c: "".join(t + " some words" for t in c))


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


def refusal(path: Path | str, *, end_of_text: str = END_OF_TEXT) -> str:
    with pytest.raises(UserError) as caught:
        pretrained(path, end_of_text=end_of_text)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert said.startswith(f"data.tokenizer.path={path}: ")
    return said.removeprefix(f"data.tokenizer.path={path}: ")


@given(text=texts)
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=texts)
def test_byte_lengths_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@given(batch=st.lists(texts, max_size=6))
def test_batch_equals_one_by_one(tokenizer: Tokenizer, batch: list[str]) -> None:
    assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]


@cache
def some_tokenizer(kind: str) -> Tokenizer:
    """One of `KINDS`, one token a byte, or one with added tokens, special and not."""
    if kind == "bytes":
        return Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)
    if kind != "added":
        return tokenizer_of(kind)
    bpe = library("llama")
    bpe.add_tokens([AddedToken(content, normalized=False) for content in ADDED])
    bpe.add_special_tokens(SPECIAL)
    return Tokenizer(bpe.to_str(), end_of_text=END_OF_TEXT)


@pytest.mark.parametrize("kind", [*KINDS, "bytes", "added"])
@given(text=texts | st.lists(st.sampled_from([*CHUNKS, *ADDED, *SPECIAL])).map("".join))
def test_bytes_of_the_tokens_join_to_the_text(kind: str, text: str) -> None:
    tokenizer = some_tokenizer(kind)
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()


@pytest.mark.parametrize("kind", [*KINDS, "bytes", "added"])
def test_bytes_of_each_token_are_what_it_decodes_to(kind: str) -> None:
    tokenizer = some_tokenizer(kind)
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
    for i, found in enumerate(tokenizer.token_bytes):
        assert found.decode(errors="replace") == tokenizer.decode([i])
        assert len(found) == tokenizer.byte_lengths[i]


def test_special_tokens_have_no_bytes_and_added_ones_theirs() -> None:
    tokenizer = some_tokenizer("added")
    known = json.loads(tokenizer.json)["added_tokens"]
    found = {token["content"]: tokenizer.token_bytes[token["id"]] for token in known}
    texts = {text: text.encode() for text in ADDED}
    assert found == dict.fromkeys(("<pad>", END_OF_TEXT, *SPECIAL), b"") | texts


def test_byte_lengths_cover_the_vocabulary(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.end_of_text] == 0
    assert (np.delete(lengths, tokenizer.end_of_text) >= 1).all()
    assert lengths.max() > 1


@pytest.mark.parametrize("text", [END_OF_TEXT, f"a{END_OF_TEXT}b", f"{END_OF_TEXT} " * 3])
def test_end_of_text_in_text_is_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    assert len(ids) > 1
    assert tokenizer.decode(ids) == text


def test_end_of_text_is_left_out_of_decoded_text(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.end_of_text, *tokenizer.encode("def f"), tokenizer.end_of_text]
    assert tokenizer.decode(ids) == "def f"


@pytest.mark.parametrize("vocab_size", [257, 290, 300])
def test_vocabulary_has_the_size_asked_for(vocab_size: int) -> None:
    trained = Tokenizer.train(
        [some_text(3000, seed=1)], vocab_size=vocab_size, end_of_text=END_OF_TEXT
    )
    assert trained.vocab_size == vocab_size
    every_byte = "".join(map(chr, range(0x800)))
    assert trained.decode(trained.encode(every_byte)) == every_byte


def test_training_is_deterministic() -> None:
    corpus = [some_text(300, seed=seed) for seed in range(20)]
    first, second = (
        Tokenizer.train(iter(corpus), vocab_size=320, end_of_text=END_OF_TEXT) for _ in range(2)
    )
    assert first.json == second.json
    assert first.json != Tokenizer.train(corpus[:5], vocab_size=320, end_of_text=END_OF_TEXT).json


@given(text=texts)
def test_json_holds_everything(tokenizer: Tokenizer, text: str) -> None:
    again = Tokenizer(tokenizer.json, end_of_text=END_OF_TEXT)
    assert again.json == tokenizer.json
    assert again.encode(text) == tokenizer.encode(text)
    assert again.end_of_text == tokenizer.end_of_text
    np.testing.assert_array_equal(again.byte_lengths, tokenizer.byte_lengths)


@pytest.mark.parametrize("prompt", ["def ", "    ", " ", "a  "])
def test_a_prompt_that_ends_in_a_space_leaves_it_to_the_first_token(
    tokenizer: Tokenizer, prompt: str
) -> None:
    ids, allowed = tokenizer.encode_prompt(prompt)
    assert allowed is not None
    assert allowed.any()
    assert not allowed[tokenizer.end_of_text]
    for first in np.flatnonzero(allowed):
        assert tokenizer.decode([*ids, int(first)]).startswith(prompt)


def test_any_other_prompt_may_be_continued_by_any_token(tokenizer: Tokenizer) -> None:
    ids, allowed = tokenizer.encode_prompt("def")
    assert ids == [tokenizer.end_of_text, *tokenizer.encode("def")]
    assert allowed is None


@pytest.mark.parametrize("kind", KINDS)
@given(text=long_texts, piece=st.integers(16, 23), parted=st.booleans())
def test_pieces_have_the_ids_of_the_whole(kind: str, text: str, piece: int, parted: bool) -> None:
    tokenizer = tokenizer_of(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        found = list(pieces(list(text) if parted else [text]))
    assert "".join(found) == text
    joined = [i for ids in tokenizer.encode_batch(found) for i in ids]
    assert joined == tokenizer.encode(text)
    assert tokenizer.decode(joined) == text
    assert len(found) > 1 or len(text) < 9 * piece


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["a", "終", " ", "\n", "9", ";\n \n", "  \n", "🙂\t", "1 2 "])
def test_pieces_of_a_text_without_words_keep_it(
    kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    tokenizer, text = tokenizer_of(kind), unit * 201
    found = list(pieces([text]))
    assert len(found) > 1
    ids = [i for ids in tokenizer.encode_batch(found) for i in ids]
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["終", " ", "\n", "9", ";\n", ";\n \n", "  \n", "🙂\t"])
def test_a_short_text_without_words_has_the_ids_of_the_whole(
    kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    tokenizer, text = tokenizer_of(kind), unit * (50 // len(unit))
    ids = [i for ids in tokenizer.encode_batch(list(pieces([text]))) for i in ids]
    assert ids == tokenizer.encode(text)


@given(text=texts)
def test_bytes_are_one_token_each(text: str) -> None:
    tokenizer = Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 257
    assert np.delete(tokenizer.byte_lengths, tokenizer.end_of_text).tolist() == [1] * 256


def test_bytes_are_never_merged() -> None:
    trained = Tokenizer.train([some_text(900, seed=2)], vocab_size=257, end_of_text=END_OF_TEXT)
    assert len(trained.encode("return self")) == 11


def test_pretrained_is_a_file_or_a_folder_with_one(tmp_path: Path) -> None:
    path = stored(tmp_path, library("llama"))
    expected = tokenizer_of("llama")
    for place in (path, tmp_path):
        found = pretrained(place)
        assert found.json == expected.json
        assert found.vocab_size == 340
        assert found.encode("it's 12345") == expected.encode("it's 12345")


def test_pretrained_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, library("qwen"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained("~/tokenizer.json").json == tokenizer_of("qwen").json


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_pretrained_keeps_text_and_bytes(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


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


@pytest.mark.parametrize(
    "normalizer", [normalizers.NFC(), normalizers.Sequence([normalizers.NFC()])]
)
@pytest.mark.parametrize("text", ["e\u0301 A\u030a", "é", "\u212b \u1100\u1161"])
def test_text_is_not_normalized(tmp_path: Path, normalizer: Any, text: str) -> None:
    bpe = library("qwen")
    bpe.normalizer = normalizer
    tokenizer = pretrained(stored(tmp_path, bpe))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


def padded(bpe: tokenizers.Tokenizer) -> None:
    bpe.enable_padding(length=50, pad_token="<pad>")


def cut_short(bpe: tokenizers.Tokenizer) -> None:
    bpe.enable_truncation(max_length=3)


def begun(bpe: tokenizers.Tokenizer) -> None:
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, bpe.token_to_id(END_OF_TEXT))]
    )


def dropout(bpe: tokenizers.Tokenizer) -> None:
    bpe.model.dropout = 0.5


@pytest.mark.parametrize("setting", [padded, cut_short, begun, dropout])
def test_settings_for_batches_chats_and_training_are_ignored(
    tmp_path: Path, setting: Callable[[tokenizers.Tokenizer], None]
) -> None:
    bpe = library("llama")
    setting(bpe)
    tokenizer, batch = pretrained(stored(tmp_path, bpe)), [some_text(30, seed=1), "", "def x"]
    expected = tokenizer_of("llama").encode_batch(batch)
    assert tokenizer.encode_batch(batch) == expected
    assert [tokenizer.decode(ids) for ids in expected] == batch


def test_an_added_token_that_is_decoded_as_bytes_is_refused(tmp_path: Path) -> None:
    """The library takes the letters of `naïve` for the alphabet of bytes."""
    bpe = library("llama")
    bpe.add_tokens([AddedToken("naïve", normalized=False)])
    assert "naïve" in refusal(stored(tmp_path, bpe))


@pytest.mark.parametrize("token", ["<tool_call>", "終 end", "   ", "\n\t"])
def test_added_tokens_count_with_their_bytes(tmp_path: Path, token: str) -> None:
    bpe = library("llama")
    bpe.add_tokens([AddedToken(token, normalized=False)])
    bpe.add_special_tokens(["<|im_start|>"])
    tokenizer = pretrained(stored(tmp_path, bpe))
    text = f"def {token}x{token}<|im_start|> y"
    ids = tokenizer.encode(text)
    added, special = (bpe.token_to_id(t) for t in (token, "<|im_start|>"))
    assert ids.count(added) == 2
    assert special not in ids
    assert tokenizer.byte_lengths[added] == len(token.encode())
    assert tokenizer.byte_lengths[special] == 0
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_ids_may_have_holes(tmp_path: Path) -> None:
    content = json.loads(library("ours").to_str())
    vocab = content["model"]["vocab"]
    vocab |= {t: i + 100 for t, i in vocab.items() if i >= 300}
    tokenizer = pretrained(stored(tmp_path, json.dumps(content)))
    assert tokenizer.vocab_size == tokenizer.byte_lengths.size == 440
    assert not tokenizer.byte_lengths[300:400].any()
    text = "".join(CHUNKS) + some_text(60, seed=3)
    ids = tokenizer.encode(text)
    assert max(ids) >= 400
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


def test_a_prompt_that_ends_in_a_space_works_for_pretrained_ones() -> None:
    tokenizer = tokenizer_of("qwen")
    ids, allowed = tokenizer.encode_prompt("some ")
    assert allowed is not None
    for first in np.flatnonzero(allowed):
        assert tokenizer.decode([*ids, int(first)]).startswith("some ")


@pytest.mark.parametrize("n_added", [0, 43, 44, 45])
def test_model_has_room_for_a_pretrained_vocabulary(tmp_path: Path, n_added: int) -> None:
    bpe = library("llama")
    bpe.add_tokens([f"<added {i}>" for i in range(n_added)])
    path = stored(tmp_path, bpe)
    cfg = load_config(["model=nano", "data/tokenizer=pretrained", f"data.tokenizer.path={path}"])
    assert cfg.data.tokenizer.vocab_size == 340 + n_added
    assert cfg.model.vocab_size == (448 if n_added == 45 else 384)
    assert cfg.data.tokenizer.vocab_size == pretrained(path).vocab_size


def test_model_has_room_for_bytes() -> None:
    cfg = load_config(["model=nano", "data/tokenizer=bytes"])
    assert (cfg.data.tokenizer.vocab_size, cfg.model.vocab_size) == (257, 320)


def test_config_names_a_missing_tokenizer(tmp_path: Path) -> None:
    words = ["data/tokenizer=pretrained", f"data.tokenizer.path={tmp_path / 'missing'}"]
    with pytest.raises(UserError, match=r"^[^\n]*missing[^\n]*$"):
        load_config(["model=nano", *words])
