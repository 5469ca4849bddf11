"""Tokenizers that others trained: read without loss, and the room a model has for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from tokenizers import AddedToken, normalizers, processors

from mla_lm import load_config
from tests.data.conftest import END_OF_TEXT, some_text
from tests.data.foreign_tokenizers import (
    CHUNKS,
    KINDS,
    library,
    pretrained,
    stored,
    texts,
    tokenizer_of,
)


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


@pytest.mark.parametrize("n_added", [0, 43, 44, 45])
def test_model_has_room_for_a_pretrained_vocabulary(tmp_path: Path, n_added: int) -> None:
    bpe = library("llama")
    bpe.add_tokens([f"<added {i}>" for i in range(n_added)])
    path = stored(tmp_path, bpe)
    cfg = load_config(["model=nano", "data/tokenizer=pretrained", f"data.tokenizer.path={path}"])
    assert cfg.data.tokenizer.vocab_size == 340 + n_added
    assert cfg.model.vocab_size == (448 if n_added == 45 else 384)
    assert cfg.data.tokenizer.vocab_size == pretrained(path).vocab_size
