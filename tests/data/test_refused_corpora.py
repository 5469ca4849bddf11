"""Corpora that are not prepared: too little text, or a tokenizer that does not fit it."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from mla_lm.data import Tokenizer, head, prepare
from mla_lm.errors import UserError
from tests.data.conftest import END_OF_TEXT, MakeConfig, some_text, write_rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.txt": "x"}, "1 document"),
        ({"a.txt": ""}, "0 document"),
        ({"a.txt": "", "b.txt": ""}, "0 document"),
        ({"a.txt": "", "b.txt": "text"}, "1 document"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_too_little_text_is_refused(
    quick_config: MakeConfig, tmp_path: Path, kind: str, content: dict[str, str], message: str
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    path = folder if len(content) > 1 else folder / "a.txt"
    cfg = quick_config(path, tokenizer=kind)
    for _ in range(2):
        with pytest.raises(UserError, match=message) as caught:
            prepare(cfg)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_everything_held_out_is_refused(quick_config: MakeConfig, folder: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.99999"):
        prepare(quick_config(folder, tokenizer=kind, val_fraction=1 - 1e-9))


def test_one_text_many_times_is_refused(quick_config: MakeConfig, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ["the same"] * 9)
    with pytest.raises(UserError, match="all the same"):
        prepare(quick_config(path, "jsonl"))


@pytest.mark.parametrize(("kind", "suffix"), [("text", "txt"), ("jsonl", "jsonl")])
def test_explicit_validation_without_text_is_refused(
    quick_config: MakeConfig, tmp_path: Path, kind: str, suffix: str
) -> None:
    path = write_rows(tmp_path / f"rows.{suffix}", ["one", "two"])
    empty = tmp_path / f"empty.{suffix}"
    empty.touch()
    with pytest.raises(UserError, match="no text to validate on") as caught:
        prepare(quick_config(path, kind, val_path=empty))
    assert str(path) in str(caught.value)


def test_a_bad_row_leaves_nothing_that_looks_finished(
    quick_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD", 100)
    path = write_rows(tmp_path / "rows.jsonl", [some_text(30, seed=i) for i in range(30)])
    with path.open("a") as file:
        file.write("{]\n")
    cfg = quick_config(path, "jsonl")
    for _ in range(2):
        with pytest.raises(UserError, match="line 31: not JSON") as caught:
            prepare(cfg)
        assert str(path) in str(caught.value)
    assert not list(Path(cfg.cache_dir).glob("*/manifest.json"))


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(
    data_config: MakeConfig, folder: Path, tokenizer: Tokenizer
) -> None:
    path = folder.parent / "tokenizer.json"
    path.write_text(tokenizer.json)
    with pytest.raises(UserError, match=r"data\.tokenizer\.vocab_size=280: .* has 300"):
        prepare(
            data_config(
                folder,
                tokenizer="pretrained",
                tokenizer__path=path,
                tokenizer__vocab_size=280,
            )
        )


def test_a_tokenizer_that_drops_a_rare_character_is_noticed(
    data_config: MakeConfig, folder: Path
) -> None:
    """The probes do not hold a zero-width space; the count of bytes does."""
    bpe = tokenizers.Tokenizer.from_str(
        Tokenizer.train((), vocab_size=257, end_of_text=END_OF_TEXT).json
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\u200b", "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    (folder.parent / "tokenizer.json").write_text(bpe.to_str())
    cfg = data_config(
        folder, tokenizer="pretrained", tokenizer__path=folder.parent / "tokenizer.json"
    )
    (folder / "03.txt").write_text("some\u200bwords")
    with pytest.raises(UserError, match="changes text: 'some"):
        prepare(cfg)
