"""No secret is written or printed, by its name or by its value, and nothing else is hidden."""

import json
from pathlib import Path
from typing import Any

import pytest

from mla_lm import load_config
from mla_lm.checkpoint.record import Record, write_run_files
from mla_lm.config.compose import instantiate
from mla_lm.config.secret import hidden, is_secret, public
from mla_lm.config.section import leaves
from mla_lm.data import Tokenizer
from tests.conftest import one_line, tiny_config
from tests.processes import run
from tests.runs.conftest import short_run, write_corpus

SECRET = "s3cr3t/of mine"
SECRETS = (
    "api_key API-Key apiKey token auth password passwd new_password PGPASSWORD MYSQL_PWD secret "
    "client_secret credentials private_key wandb_key AWS_SECRET_ACCESS_KEY GITHUB_TOKEN_2 HFToken "
    "hf_tokens accessToken Authorization X-Api-Key api_keys passphrase smtp_pass cookie"
)
OTHERS = (
    "tokens n_tokens max_tokens max_new_tokens tokens_per_second bytes_per_token tokenizer "
    "tokenizer_sha256 pad_token special_tokens author authority keys key sort_key public_key "
    "n_kv_heads passkey passes compass keyboard hf_token_file secretary"
)
TEXTS = {
    f"https://me:{SECRET.replace(' ', '')}@host/x": "https://host/x",
    "https://TOKEN@host and postgres://u:p@ss@h/d": "https://host and postgres://h/d",
    "https://medium.com/@me and me@host": "https://medium.com/@me and me@host",
    "https://h/x?a=1&token=abc": "https://h/x?a=1&token=***",
    "https://h/x?sig=abc": "https://h/x?sig=***",
    "curl -H 'Authorization: Bearer abc'": "curl -H 'Authorization: ***",
    "Proxy-Authorization: Basic abc": "Proxy-Authorization: ***",
    "x={'entity': 'me', 'api_key': 'a b'}: no": "x={'entity': 'me', 'api_key': ***}: no",
    "+logger.x.api_key=abc: no": "+logger.x.api_key=***: no",
    "logger.x.api_key: must be given": "logger.x.api_key: must be given",
    "id 5 at token 7, tokens=8, n_tokens=9": "id 5 at token 7, tokens=8, n_tokens=9",
}


def test_a_name_is_secret_by_its_last_word() -> None:
    assert [name for name in SECRETS.split() if not is_secret(name)] == []
    assert [name for name in OTHERS.split() if is_secret(name)] == []
    cfg = load_config(["logger=[csv,tensorboard,wandb]", "data=tinystories"])
    assert public(tree := cfg.model_dump(mode="json")) == tree
    assert [key for key, _ in leaves(tree) if is_secret(key)] == []


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_shown_without_secrets(text: str) -> None:
    assert hidden(text) == TEXTS[text]


def test_the_time_does_not_grow_with_the_square_of_a_text() -> None:
    """Which comes from strangers; a square would take hours."""
    for part in ("a", "a.b-", "a=[", "{k:", "a://", "token=***"):
        assert hidden(part * 300_000) == part * 300_000


def test_secret_keys_and_overrides_are_left_out() -> None:
    tree = {
        "logger": {"x": {"api_key": SECRET, "entity": "me", "headers": {"Authorization": SECRET}}},
        "password": 12345678,
        "data": {"path": "https://me:p@host/file", "max_new_tokens": 3, "train_tokens": 4},
        "rows": [{"auth": SECRET}],
    }
    assert public(tree) == {
        "logger": {"x": {"entity": "me", "headers": {}}},
        "data": {"path": "https://host/file", "max_new_tokens": 3, "train_tokens": 4},
        "rows": [{}],
    }
    words = ["logger.x.api_key=1", "data.tokenizer.kind=bpe", "+logger.x.token=2"]
    words += ["+logger.y={entity: me, hf_token: 3}", "data.tokenizer={kind: bytes}"]
    words += ["+logger.x.credentials.user=me", "+callbacks.x.url=https://h?token=3"]
    assert public(words) == [words[1], words[4], "+callbacks.x.url=https://h?token=***"]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("DB_PASSWORD", SECRET, False),
        ("WANDB_API_KEY", "5f2ab0", False),
        ("PATH_OF_IT", SECRET, True),
        ("API_TOKEN", "true", True),
        ("API_TOKEN", "stdlib", True),
        ("API_KEY", "validation", True),
        ("OLDPWD", SECRET, True),
    ],
)
def test_the_value_of_a_secret_variable_is_hidden(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, shown: bool
) -> None:
    monkeypatch.setenv(name, value)
    notes = [f"the key is {value}", value]
    assert public(notes) == (notes if shown else ["the key is ***", "***"])


@pytest.mark.parametrize(
    "word",
    [
        f"+logger.wandb.api_key=[{SECRET}",
        f"+logger.wandb.password={SECRET}, {SECRET}",
        f"+logger.wandb={{api_key: {SECRET}, _target_: }}",
        f"+logger.wandb={{api_key: '{SECRET}'}}",
        f"data.path=https://me:{SECRET.replace(' ', '')}@host",
        f"logger.csv={{_target_: builtins.int, x: {{token: '{SECRET}'}}}}",
    ],
)
def test_no_error_line_has_a_secret(word: str) -> None:
    def compose() -> Any:
        instantiate("logger", load_config(["data=text", "data.path=x", word]).logger)
        raise AssertionError("no error")

    if word.startswith("data.path"):
        import train

        said = one_line(lambda: train.train(load_config(["data=text", word]), []))
    else:
        said = one_line(compose)
    assert not {*SECRET.split()} & {*said.replace(",", " ").split()}, said
    assert "s3cr3t" not in said


def test_the_files_of_a_run_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    notes = "+logger.wandb.notes='see ${oc.env:DB_PASSWORD}'"
    cfg = tiny_config("logger=wandb", notes, "+logger.wandb.passwd=abcdef")
    tokenizer = Tokenizer.train((), vocab_size=257, end_of_text="<|endoftext|>").json
    data = {"name": SECRET, "bytes_per_token": 3.0}
    record = Record.of(cfg, command="", tokenizer=tokenizer, data=data, environment={})
    write_run_files(tmp_path, cfg, record)
    for file in tmp_path.iterdir():
        assert SECRET not in file.read_text()
    logger = json.loads((tmp_path / "config.json").read_text())["logger"]["wandb"]
    assert logger["notes"] == "see ***"
    assert "passwd" not in logger


def test_a_study_keeps_none(tmp_path: Path) -> None:
    """In no file and no line, whether its cells end well or fail with it in their error."""
    write_corpus(tmp_path / "text")
    node = "{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: ., api_key: abc-secret}"
    study = f"""
        question: q
        arms: {{mla: [trainer.max_steps=1], lost: ["+logger.mine={node}"]}}
        reference: mla
        seeds: [1]
        confidence: null
    """
    (tmp_path / "mine.yaml").write_text(study)
    words = [*short_run(tmp_path), "trainer.max_steps=1"]
    words += [f"+callbacks.x={{_target_: builtins.print, password: {SECRET}}}", "callbacks.x=null"]
    command = ("-m", "mla_lm", "ablate", "ablation=mine.yaml", "out=out", *words)
    result = run(*command, cwd=tmp_path)
    assert "1 of 2 cells failed: lost-s1" in result.stderr, result.stderr
    assert (tmp_path / "out" / "report.html").exists()
    texts = [file.read_bytes().decode(errors="replace") for file in (tmp_path / "out").rglob("*.*")]
    for text in (result.stdout, result.stderr, *texts):
        for secret in (SECRET, "abc-secret"):
            assert secret not in text
