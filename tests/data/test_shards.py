"""Token files: whatever is appended, interrupted and gone on with is read back as one sequence."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.data import shards
from mla_lm.data.shards import Shard, ShardWriter, TokenStream, digest, shard_path
from mla_lm.errors import UserError

U16, U32 = np.dtype(np.uint16), np.dtype(np.uint32)
VOCAB = 1000
ids_lists = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=9), max_size=9)
capacities = st.integers(min_value=1, max_value=8)  # ids in a shard
dtypes = st.sampled_from([U16, U32])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 8)


def write(
    folder: Path, *appended: Sequence[int], dtype: np.dtype[Any] = U16, n_tokens: int = 0
) -> list[Shard]:
    writer = ShardWriter(folder, "train", dtype, n_tokens=n_tokens)
    for ids in appended:
        writer.append(ids)
    return writer.close()


def leave(folder: Path, *appended: Sequence[int], dtype: np.dtype[Any] = U16) -> None:
    """Write as a process that is killed does: nothing is closed properly."""
    writer = ShardWriter(folder, "train", dtype, n_tokens=0)
    for ids in appended:
        writer.append(ids)


def read(found: list[Shard], dtype: np.dtype[Any] = U16) -> list[int]:
    return TokenStream(found, dtype, vocab_size=VOCAB)[:].tolist()


def sizes(folder: Path) -> list[int]:
    return [p.stat().st_size for p in sorted(folder.glob("train-*.bin"))]


@contextmanager
def small_shards(capacity: int, dtype: np.dtype[Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", capacity * dtype.itemsize)
        yield


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStream, list[int]]:
    ids = np.random.default_rng(0).integers(VOCAB, size=50).tolist()
    with small_shards(7, U16):
        found = write(tmp_path_factory.mktemp("stream"), ids)
    return TokenStream(found, U16, vocab_size=VOCAB), ids


@settings(max_examples=30)
@given(appended=ids_lists, capacity=capacities, dtype=dtypes)
def test_shards_hold_what_was_appended(
    appended: list[list[int]], capacity: int, dtype: np.dtype[Any]
) -> None:
    with small_shards(capacity, dtype), TemporaryDirectory() as name:
        found = write(Path(name), *appended, dtype=dtype)
        expected = list(chain.from_iterable(appended))
        assert read(found, dtype) == expected
        counts = [shard.tokens for shard in found]
        full, rest = divmod(len(expected), capacity)
        assert counts == ([capacity] * full + [rest] * (rest > 0) or [0])
        assert sizes(Path(name)) == [count * dtype.itemsize for count in counts]
        assert [digest(shard.path) for shard in found] == [shard.sha256 for shard in found]


@settings(max_examples=30)
@given(appended=ids_lists, capacity=capacities, dtype=dtypes, data=st.data())
def test_writing_goes_on_from_any_token(
    appended: list[list[int]], capacity: int, dtype: np.dtype[Any], data: st.DataObject
) -> None:
    expected = list(chain.from_iterable(appended))
    noted = data.draw(st.integers(0, len(expected)))
    with (
        small_shards(capacity, dtype),
        TemporaryDirectory() as one,
        TemporaryDirectory() as other,
    ):
        leave(Path(one), *appended, dtype=dtype)
        found = write(Path(one), expected[noted:], dtype=dtype, n_tokens=noted)
        undisturbed = write(Path(other), expected, dtype=dtype)
        assert read(found, dtype) == expected
        assert [s.sha256 for s in found] == [s.sha256 for s in undisturbed]
        assert sizes(Path(one)) == sizes(Path(other))


@pytest.mark.parametrize("n_tokens", range(9))
@pytest.mark.usefixtures("small")
def test_what_lies_behind_the_noted_token_is_cut_off(tmp_path: Path, n_tokens: int) -> None:
    leave(tmp_path, range(20))
    with shard_path(tmp_path, "train", 5).open("ab") as file:
        file.write(b"garbage")
    assert read(write(tmp_path, n_tokens=n_tokens)) == list(range(n_tokens))
    assert sum(sizes(tmp_path)) == 2 * n_tokens


@pytest.mark.parametrize(
    ("index", "size"), [(0, 6), (0, 0), (1, 7), (2, 3), (2, 0)], ids=lambda value: str(value)
)
@pytest.mark.usefixtures("small")
def test_a_shard_shorter_than_noted_is_refused(tmp_path: Path, index: int, size: int) -> None:
    leave(tmp_path, range(10))
    path = shard_path(tmp_path, "train", index)
    os.truncate(path, size)
    with pytest.raises(UserError, match="shorter") as caught:
        ShardWriter(tmp_path, "train", U16, n_tokens=10)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.usefixtures("small")
def test_a_missing_shard_is_refused(tmp_path: Path, index: int) -> None:
    leave(tmp_path, range(10))
    path = shard_path(tmp_path, "train", index)
    path.unlink()
    with pytest.raises(UserError, match="shorter") as caught:
        ShardWriter(tmp_path, "train", U16, n_tokens=10)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("n_tokens", "files"), [(0, 1), (3, 1), (4, 1), (5, 2), (8, 2)])
@pytest.mark.usefixtures("small")
def test_exactly_full_shards_leave_no_empty_one(tmp_path: Path, n_tokens: int, files: int) -> None:
    assert len(write(tmp_path, range(n_tokens))) == len(sizes(tmp_path)) == files


@pytest.mark.usefixtures("small")
def test_closed_shards_can_be_gone_on_with(tmp_path: Path) -> None:
    write(tmp_path, range(8))
    assert read(write(tmp_path, [8, 9], n_tokens=8)) == list(range(10))


def test_a_file_that_takes_a_part_of_a_block_gets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reluctant(FileIO):
        def write(self, block: memoryview) -> int:
            return super().write(block[:3])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Reluctant(path, mode))
        shards.write(tmp_path / "file", b"0123456789")
        shards.write(tmp_path / "file", "終", append=True)
    assert (tmp_path / "file").read_text() == "0123456789終"


@pytest.mark.usefixtures("small")
def test_splits_do_not_touch_each_other(tmp_path: Path) -> None:
    write(tmp_path, range(20))
    ShardWriter(tmp_path, "val", U16, n_tokens=0).close()
    assert sizes(tmp_path) == [8] * 5


@pytest.mark.parametrize("too_large", [2**16, -1])
def test_an_id_that_does_not_fit_is_not_stored(tmp_path: Path, too_large: int) -> None:
    writer = ShardWriter(tmp_path, "train", U16, n_tokens=0)
    with pytest.raises(OverflowError):
        writer.append([1, too_large])
    assert [shard.tokens for shard in writer.close()] == [0]


ends = st.none() | st.integers(-60, 60)


@given(start=ends, stop=ends)
def test_slices_are_those_of_an_array(
    stream: tuple[TokenStream, list[int]], start: int | None, stop: int | None
) -> None:
    tokens, ids = stream
    found = tokens[start:stop]
    assert found.dtype == U16
    np.testing.assert_array_equal(found, np.array(ids, U16)[start:stop])


def test_a_slice_is_a_copy(stream: tuple[TokenStream, list[int]]) -> None:
    tokens, ids = stream
    for window in (slice(1, 3), slice(3, 30)):
        tokens[window][:] = 0
    assert tokens[:].tolist() == ids


def test_an_empty_split_is_an_empty_stream(tmp_path: Path) -> None:
    tokens = TokenStream(write(tmp_path), U32, vocab_size=VOCAB)
    assert len(tokens) == 0
    assert tokens[:].shape == tokens[3:9].shape == (0,)
    assert tokens[:].dtype == U32


@pytest.mark.parametrize("bad", [VOCAB, 2**16 - 1])
@pytest.mark.parametrize("position", [0, 3, 4, 9])
@pytest.mark.usefixtures("small")
def test_an_id_beyond_the_vocabulary_is_named(tmp_path: Path, bad: int, position: int) -> None:
    ids = list(range(10))
    ids[position] = bad
    tokens = TokenStream(write(tmp_path, ids), U16, vocab_size=VOCAB)
    for window in (slice(None), slice(position, position + 1), slice(max(0, position - 2), 10)):
        with pytest.raises(UserError) as caught:
            tokens[window]
        message = str(caught.value)
        assert f"{shard_path(tmp_path, 'train', position // 4)}: id {bad} " in message
        assert f"token {position % 4}," in message
        assert "\n" not in message
    assert tokens[:position].tolist() == ids[:position]
    assert tokens[position + 1 :].tolist() == ids[position + 1 :]
