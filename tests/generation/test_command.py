"""`python -m mla_lm generate`: prompts in, text out, as real processes and as calls in this one."""

import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from mla_lm import __main__ as verbs
from mla_lm import load_checkpoint, load_config
from mla_lm.data import Tokenizer
from mla_lm.model import Transformer
from tests.conftest import randomized, write_checkpoint
from tests.generation.conftest import decode
from tests.processes import command, environment, run

CONTEXT = 48
PROMPT = "def f(x={1: 2}, **k): # naïve 終\n    return x ="
LINE = "-" * 40
Result = tuple[int, str, str]
Generate = Callable[..., Result]


class Checkpoints(NamedTuple):
    drafting: Path
    without_mtp: Path


def run_of(folder: Path, tokenizer: Tokenizer, *overrides: str) -> Path:
    """The folder of a run with one checkpoint."""
    cfg = load_config(["model=nano", f"data.seq_len={CONTEXT}", *overrides])
    torch.manual_seed(0)
    model = randomized(Transformer(cfg.model))
    write_checkpoint(folder / "checkpoints" / "step-000003.ckpt", cfg, tokenizer, model)
    return folder


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Checkpoints:
    place = tmp_path_factory.mktemp("generate")
    return Checkpoints(
        run_of(place / "drafting", tokenizer),
        run_of(place / "without", tokenizer, "model.mtp_depth=0"),
    )


@pytest.fixture
def generate(
    ckpt: Checkpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Generate:
    """The command in this process: status, what it prints, what it says on stderr."""

    def call(*words: str, stdin: bytes = b"", folder: Path = ckpt.drafting) -> Result:
        given = ("generate", f"ckpt={folder}", "precision=32-true", *words)
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


def test_the_prompt_comes_first_then_text_piece_by_piece_beyond_the_trained_context(
    ckpt: Checkpoints, tmp_path: Path
) -> None:
    """All of it fits the buffer of a pipe: without flushing it would come at once, at the end."""
    words = (f"ckpt={ckpt.drafting}", "prompt=-", "context=250", "max_new_tokens=180")
    process = subprocess.Popen(
        command("-m", "mla_lm", "generate", *words, "temperature=0", "precision=32-true"),
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with process:
        process.stdin.write(PROMPT.encode())
        process.stdin.close()
        first, *later = read_as_it_comes(process.stdout.fileno())
        said = process.stderr.read().decode()
    assert (process.returncode, said) == (0, "")
    assert first.startswith(PROMPT.encode())
    assert len(later) > 10
    everything = b"".join((first, *later)).decode()
    assert len(everything) < 4096

    model, _, tokenizer = load_checkpoint(ckpt.drafting, context=250)
    prompt, _ = tokenizer.encode_prompt(PROMPT)
    first_mask = torch.ones(1, tokenizer.vocab_size, dtype=torch.bool)
    (ids,) = decode(model, [prompt], 180, stop=tokenizer.end_of_text, first=first_mask)
    assert len(prompt) + len(ids) > 3 * CONTEXT
    assert everything == PROMPT + tokenizer.decode(ids) + "\n"


def read_as_it_comes(file: int) -> Iterator[bytes]:
    while piece := os.read(file, 100_000):
        yield piece


def test_without_a_prompt_lines_are_asked_for_until_they_end(
    ckpt: Checkpoints, tmp_path: Path
) -> None:
    words = (f"ckpt={ckpt.drafting}", "max_new_tokens=4", "temperature=0")
    result = run("-m", "mla_lm", "generate", *words, cwd=tmp_path, stdin="def f\nword = 終\n")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    _, first, second, last = result.stdout.split("> ")
    assert first.startswith("def f")
    assert second.startswith("word = 終")
    assert last.strip() == ""


def test_several_prompts_are_one_batch(tmp_path: Path, generate: Generate) -> None:
    """A file, a prompt that ends in a space, stop strings and drafts at once."""
    file = tmp_path / "prompt.txt"
    file.write_text("the word\nof naïve 🙂", encoding="utf-8")
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
    assert "tokens a step" in said
    assert len(said.splitlines()) == 1


def test_a_refusal_ends_a_process_with_status_2_and_one_line(
    ckpt: Checkpoints, tmp_path: Path
) -> None:
    words = (f"ckpt={ckpt.drafting}", f"prompt={'a 終 ' * CONTEXT}")
    result = run("-m", "mla_lm", "generate", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert f"exceeds model.max_seq_len={CONTEXT}" in result.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["prompt=x", "temperature=-1"], "temperature=-1"),
        (["prompt=x", "top_p=0"], "top_p=0"),
        (["prompt=x", "top_p=1.5"], "top_p=1.5"),
        (["prompt=x", "min_p=-0.5"], "min_p=-0.5"),
        (["prompt=x", "max_new_tokens=0"], "max_new_tokens=0"),
        (["prompt=x", "n_drafts=2"], "n_drafts=2"),
        (["prompt=x", "stop="], "stop"),
        (["prompt=x", "prompt=" + "a 終 " * CONTEXT], "model.max_seq_len=48"),
        (["prompt=x y z", "context=2"], "model.max_seq_len=2"),
        (["prompt=@no such file"], "no such file"),
        (["prompt=@/"], "prompt='@/'"),
        (["prompt=\udcff"], "prompt="),
        (["prompt"], "KEY=VALUE"),
    ],
    ids=lambda value: value[-1][:20].encode(errors="replace") if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_anything_is_printed(
    generate: Generate, words: list[str], shown: str
) -> None:
    status, printed, said = generate(*words)
    assert (status, printed) == (2, "")
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    assert shown in said


@pytest.mark.parametrize("words", [["prompt=-"], []], ids=["a prompt", "lines"])
def test_input_that_is_no_text_is_one_line(generate: Generate, words: list[str]) -> None:
    status, printed, said = generate(*words, stdin=b"caf\xe9 = 1\n")
    assert status == 2
    assert printed in ("", "> ")
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")


def test_a_model_without_mtp_cannot_draft(ckpt: Checkpoints, generate: Generate) -> None:
    status, printed, said = generate("prompt=x", "n_drafts=1", folder=ckpt.without_mtp)
    assert (status, printed) == (2, "")
    assert said.splitlines() == ["error: n_drafts=1: must be at most model.mtp_depth=0"]
    assert generate("prompt=x", "max_new_tokens=3", folder=ckpt.without_mtp)[0] == 0


@pytest.mark.parametrize("words", [["temperature=0"], ["temperature=0", "context=90"]])
def test_drafts_change_no_text_and_are_counted(generate: Generate, words: list[str]) -> None:
    words = [f"prompt={PROMPT}", "max_new_tokens=60", *words]
    plain, drafted = generate(*words), generate(*words, "n_drafts=1")
    assert plain[:2] == drafted[:2] == (0, plain[1])
    assert plain[2] == ""
    assert drafted[2].endswith("\n")
    speed, _, share = drafted[2].partition(" tokens a step; drafts accepted, by depth: ")
    assert float(speed) == pytest.approx(1 + float(share), abs=0.05)


def test_an_empty_prompt_begins_a_text(tmp_path: Path, generate: Generate) -> None:
    (tmp_path / "empty.txt").touch()
    options = ("max_new_tokens=7", "temperature=0")
    results = [
        generate(f"prompt=@{tmp_path / 'empty.txt'}", *options),
        generate("prompt=-", *options),
        generate("prompt=", *options),
    ]
    assert results[0][0] == 0
    assert results[0][1] not in ("", "\n")
    assert results == [results[0]] * 3


def test_the_seed_decides(generate: Generate) -> None:
    words = ("prompt=def", "max_new_tokens=12", "temperature=2")
    first, again, other = (generate(*words, f"seed={seed}")[1] for seed in (3, 3, 4))
    assert first == again != other


def test_bfloat16_gives_text(generate: Generate) -> None:
    status, printed, said = generate(
        f"prompt={PROMPT}", "precision=bf16-true", "n_drafts=1", "max_new_tokens=8"
    )
    assert status == 0, said
    assert printed.startswith(PROMPT)
