"""`python -m mla_lm generate`: prompts in, text out, as real processes and as calls in this one."""

import io
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from mla_lm import __main__ as verbs
from mla_lm import load_checkpoint, load_config
from mla_lm.data import Tokenizer
from mla_lm.model import Transformer
from tests.conftest import randomized, write_checkpoint
from tests.generation.conftest import decode
from tests.processes import command, environment

CONTEXT = 48
PROMPT = "def f(x={1: 2}, **k): # naïve 終\n    return x ="
LINE = "-" * 40
Result = tuple[int, str, str]
Generate = Callable[..., Result]


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The folder of a run with one checkpoint."""
    folder = tmp_path_factory.mktemp("generate")
    cfg = load_config(["model=nano", f"data.seq_len={CONTEXT}"])
    torch.manual_seed(0)
    model = randomized(Transformer(cfg.model))
    write_checkpoint(folder / "checkpoints" / "step-000003.ckpt", cfg, tokenizer, model)
    return folder


@pytest.fixture
def generate(
    ckpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Generate:
    """The command in this process: status, what it prints, what it says on stderr."""

    def call(*words: str, stdin: bytes = b"") -> Result:
        given = ("generate", f"ckpt={ckpt}", "precision=32-true", *words)
        monkeypatch.setattr("sys.argv", ["mla-lm", *given])
        given_in = io.TextIOWrapper(io.BytesIO(stdin), "utf-8", "surrogateescape")
        monkeypatch.setattr("sys.stdin", given_in)
        status = 0
        try:
            verbs.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return call


def test_a_file_gets_text_as_it_is(generate: Generate) -> None:
    status, out, _ = generate("prompt=a\x1b[31m\u202eb", "max_new_tokens=1")
    assert status == 0
    assert out.startswith("a\x1b[31m\u202eb")


def test_the_prompt_comes_first_then_text_piece_by_piece_beyond_the_trained_context(
    ckpt: Path, tmp_path: Path
) -> None:
    """All of it fits the buffer of a pipe: without flushing it would come at once, at the end."""
    words = (f"ckpt={ckpt}", f"prompt={PROMPT}", "context=250", "max_new_tokens=180")
    words = (*words, "temperature=0", "precision=32-true")
    process = subprocess.Popen(
        command("-m", "mla_lm", "generate", *words),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout
        first, *later = iter(partial(os.read, process.stdout.fileno(), 100_000), b"")
    assert process.returncode == 0
    assert first.startswith(PROMPT.encode())
    assert len(later) > 10

    model, _, tokenizer = load_checkpoint(ckpt, context=250)
    prompt, allowed = tokenizer.encode_prompt(PROMPT)
    mask = torch.from_numpy(allowed[None])
    (ids,) = decode(model, [prompt], 180, stop=tokenizer.end_of_text, first=mask)
    assert len(prompt) + len(ids) > 3 * CONTEXT
    text = PROMPT + tokenizer.decode(ids) + "\n"
    assert b"".join((first, *later)).decode() == text
    assert len(text) < 4096


def test_several_prompts_are_one_batch(tmp_path: Path, generate: Generate) -> None:
    """A file, a prompt that ends in a space, stop strings and drafts at once."""
    file = tmp_path / "prompt.txt"
    file.write_text("the word\nof naïve 🙂", encoding="utf-8-sig")  # as some editors do
    words = [f"prompt=@{file}", "prompt=def ", "prompt=x"]
    begins = ["the word\nof naïve 🙂", "def", "x"]
    options = ("max_new_tokens=24", "temperature=0")
    alone = [generate(word, *options)[1].removesuffix("\n") for word in words]
    stop = alone[2][3:5]
    assert stop
    assert all(text.startswith(begin) for text, begin in zip(alone, begins, strict=True))
    assert alone[1].startswith("def ")
    ends = [text.find(stop, len(begin)) for text, begin in zip(alone, begins, strict=True)]
    expected = [text[:end] if end >= 0 else text for text, end in zip(alone, ends, strict=True)]
    assert -1 in ends

    stops = (f"stop={stop}", "stop=no such text")
    status, printed, said = generate(*words, *options, *stops, "n_drafts=1")
    assert status == 0
    assert printed == f"\n{LINE}\n".join(expected) + "\n"
    assert "tokens per step" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["prompt=x", "top_p=1.5"], "top_p=1.5"),
        (["prompt=x", "max_new_tokens=0"], "max_new_tokens=0"),
        (["prompt=x", "n_drafts=2"], "n_drafts=2: must be at most model.mtp_depth=1"),
        (["prompt=x", "stop="], "stop"),
        (["prompt=x", "prompt=" + "a 終 " * CONTEXT], "model.max_seq_len=48"),
        (["prompt=x y z", "context=2"], "model.max_seq_len=2"),
        (["prompt=@no such file"], "no such file"),
        (["prompt=@/"], "prompt='@/'"),
        (["prompt=@/dev/zero"], "prompt=@/dev/zero: longer than 4,194,304 bytes"),
        (["prompt=\udcff"], "prompt="),
        (["prompt=-"], "prompt='-'"),
        (["prompt"], "KEY=VALUE"),
    ],
    ids=lambda value: value[-1][:20].encode(errors="replace") if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_anything_is_printed(
    generate: Generate, words: list[str], shown: str
) -> None:
    status, printed, said = generate(*words, stdin=b"caf\xe9 = 1\n")
    assert (status, printed) == (2, "")
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    assert shown in said


def test_without_a_prompt_lines_are_asked_for_until_they_end(generate: Generate) -> None:
    lines = f"\ufeffdef f\n{'a 終 ' * CONTEXT}\nword = 終\n".encode()
    status, printed, said = generate("max_new_tokens=4", "temperature=0", stdin=lines)
    assert status == 0
    _, first, _, second, last = printed.split("> ")
    assert first.startswith("def f")
    assert second.startswith("word = 終")
    assert last == ""
    assert said.count("\n") == 1  # of the prompt that is too long; it goes on
    status, _, said = generate(stdin=b"caf\xe9 = 1\n")
    assert (status, said.count("\n")) == (2, 1)


def test_an_empty_prompt_begins_a_text(tmp_path: Path, generate: Generate) -> None:
    (tmp_path / "empty.txt").touch()
    prompts = (f"prompt=@{tmp_path / 'empty.txt'}", "prompt=-", "prompt=")
    results = [generate(prompt, "max_new_tokens=7", "temperature=0") for prompt in prompts]
    assert results[0][0] == 0
    assert results[0][1] not in ("", "\n")
    assert results == [results[0]] * 3


def test_the_seed_decides_also_in_bfloat16(generate: Generate) -> None:
    words = ("prompt=def", "max_new_tokens=12", "temperature=2", "precision=bf16-true")
    first, again, other = (generate(*words, f"seed={seed}")[1] for seed in (3, 3, 4))
    assert first == again != other
    assert first.startswith("def")
