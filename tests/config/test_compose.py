"""Options of verbs, and how a process ends: one line that names the key, nothing is touched."""

from pathlib import Path

import pytest

from mla_lm import __main__ as verbs
from mla_lm.commands.generate import Options
from mla_lm.config import EvalConfig
from mla_lm.config import compose as cli
from mla_lm.errors import UserError, guard
from tests.processes import run


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], "ckpt"),
        (["ckpt="], "ckpt="),
        (["ckpt=x", "limit=0"], "limit=0"),
        (["ckpt=x", "batch_size=-2"], "batch_size=-2"),
        (["ckpt=x", "precision=fp8"], "precision=fp8"),
        (["ckpt=x", "model=nano"], "model"),
        (["ckpt=x", "limits=3"], "limits"),
        (["ckpt=a=b"], "ckpt=a=b"),
    ],
)
def test_bad_eval_option_is_one_line(overrides: list[str], key: str) -> None:
    with pytest.raises(UserError) as caught:
        cli.validate(EvalConfig, cli.compose("eval", overrides))
    assert len(str(caught.value).splitlines()) == 1
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    ["def f(x={1: 2}): ", " a=b=c ", "${oops}", "[1, 2", "'quoted\"", "a\nb\t", "", "終 = 1", "-5"],
)
def test_a_prompt_is_taken_as_it_is(prompt: str) -> None:
    options = cli.parse_options(Options, ["ckpt=a folder/x=1", f"prompt={prompt}"])
    assert (options.ckpt, options.prompt) == ("a folder/x=1", (prompt,))


@pytest.mark.parametrize(
    ("words", "shown", "rule"),
    [
        (["prompt=x"], "ckpt", "must be given"),
        (["ckpt=", "prompt=x"], "ckpt=", "1 character"),
        (["ckpt=x", "prompt"], "'prompt'", "KEY=VALUE"),
        (["ckpt=x", "prompt=x", "temprature=1"], "temprature", "temperature"),
        (["ckpt=x", "prompt=x", "temperature=nan"], "temperature=nan", "finite"),
        (["ckpt=x", "prompt=x", "temperature=-1"], "temperature=-1", "greater than or equal"),
        (["ckpt=x", "prompt=x", "max_new_tokens=0"], "max_new_tokens=0", "greater than 0"),
        (["ckpt=x", "prompt=x", "max_new_tokens=many"], "max_new_tokens=many", "integer"),
        (["ckpt=x", "prompt=x", "top_k=-1"], "top_k=-1", "greater than or equal"),
        (["ckpt=x", "prompt=x", "top_p=0"], "top_p=0", "greater than 0"),
        (["ckpt=x", "prompt=x", "top_p=1.1"], "top_p=1.1", "less than or equal"),
        (["ckpt=x", "prompt=x", "min_p=2"], "min_p=2", "less than or equal"),
        (["ckpt=x", "prompt=x", "n_drafts=-1"], "n_drafts=-1", "greater than or equal"),
        (["ckpt=x", "prompt=x", "context=0"], "context=0", "greater than 0"),
        (["ckpt=x", "prompt=x", "stop=a", "stop="], "stop.1=", "1 character"),
    ],
)
def test_bad_verb_option_is_one_line(words: list[str], shown: str, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        cli.parse_options(Options, words)
    named, _, said = str(caught.value).partition(": ")
    assert len(str(caught.value).splitlines()) == 1
    assert named == shown
    assert rule in said


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_verbs_are_listed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mla-lm", *arguments])
    verbs.main()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("usage", *verbs.VERBS))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train.py", "model.n_head=4"], "model.n_heads"),
        (["train.py", "optim.lr=nan", "run_dir=here"], "optim.lr=nan"),
        (["train.py", "--cfg", "job", "model.n_head=4"], "model.n_heads"),
        (["train.py", "model=nano", "data=text", "data.path=no.txt", "run_dir=here"], "no.txt"),
        (["eval.py"], "ckpt"),
        (["eval.py", "ckpt=nowhere/x.ckpt"], "nowhere/x.ckpt"),
        (["-m", "mla_lm", "trian"], "trian"),
        (["-m", "mla_lm", "generate", "ckpt=x", "prompt=@no.txt"], "no.txt"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_process_ends_with_status_2_and_one_line(
    words: list[str], named: str, tmp_path: Path
) -> None:
    result = run(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert named in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert len(result.stdout.splitlines()) <= 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        guard(interrupted)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
