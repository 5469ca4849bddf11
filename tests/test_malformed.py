"""Malformed command lines: status 2 and one line that names the key, before torch is imported.

What `tests/test_cli.py` says of values and rules is not said again here.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mla_lm import __main__ as verbs
from mla_lm import cli
from mla_lm.config import EvalConfig, RunConfig
from mla_lm.config.words import DATA, LOGGER
from tests.processes import environment, run

LONG = "x" * 5000
SECONDS = 2.0

TYPOS = {  # a line, the key that nobody knows, the nearest one
    "train model.dimm=3": ("model.dimm", "model.dim"),
    "train model.n_layer=3": ("model.n_layer", "model.n_layers"),
    "train model.attention.kv_lora_rnk=3": (
        "model.attention.kv_lora_rnk",
        "model.attention.kv_lora_rank",
    ),
    "train model.ffn.n_active_experts=3": (
        "model.ffn.n_active_experts",
        "model.ffn.n_activated_experts",
    ),
    "train model/rope=yarn model.rope.factr=3": ("model.rope.factr", "model.rope.factor"),
    "train model.sizes.nope_dim=3": ("model.sizes.nope_dim", "model.sizes.nope_head_dim"),
    "train +model.sizes.kv_rank=3": ("model.sizes.kv_rank", "model.sizes.kv_lora_rank"),
    "train balance.bias_speed=3": ("balance.bias_speed", "balance.bias_update_speed"),
    "train data.bach_size=3": ("data.bach_size", "data.batch_size"),
    "train data=text data.pth=x": ("data.pth", "data.path"),
    "train data.tokenizer.vocabsize=3": ("data.tokenizer.vocabsize", "data.tokenizer.vocab_size"),
    "train optim.weight_decy=3": ("optim.weight_decy", "optim.weight_decay"),
    "train optim.LR=3": ("optim.LR", "optim.lr"),
    "train loss.mtp_weigth=1": ("loss.mtp_weigth", "loss.mtp_weight"),
    "train trainer.max_step=5": ("trainer.max_step", "trainer.max_steps"),
    "train trainer.gradient_clip=1": ("trainer.gradient_clip", "trainer.gradient_clip_val"),
    "train checkpoint.every_minute=1": ("checkpoint.every_minute", "checkpoint.every_minutes"),
    "train logger.csv.save_dirs=x": ("logger.csv.save_dirs", "logger.csv.save_dir"),
    "train ~callbacks.progres": ("callbacks.progres", "callbacks.progress"),
    "train rundir=x": ("rundir", "run_dir"),
    "train ++resum=x": ("resum", "resume"),
    "train modl=nano": ("modl", "model"),
    "train MODEL=nano": ("MODEL", "model"),
    "train model/attentio=gqa": ("model/attentio", "model.attention"),
    "train model-dim=3": ("model-dim", "model.dim"),
    "train model.dim.deep=3": ("model.dim.deep", "model.dim"),
    "train lr=3": ("lr", "optim.lr"),
    "train batch_size=3": ("batch_size", "data.batch_size"),
    "train trainer.seed=3": ("trainer.seed", "seed"),
    "train +sead.deep.key=3": ("sead", "seed"),
    "train --cfg job sead=3": ("sead", "seed"),
    "train -m model=nano,tiny sead=3": ("sead", "seed"),
    "eval cpkt=x": ("cpkt", "ckpt"),
    "eval ckpt=x bundles.blimpp.path=x": ("bundles.blimpp", "bundles.blimp"),
    "generate ckpt=x promt=y": ("promt", "prompt"),
    "export ckpt=x out=y dtypes=bfloat16": ("dtypes", "dtype"),
    "bench suit=moe": ("suit", "suite"),
    "ablate ablation=smoke plan=true model.n_head=4": ("model.n_head", "model.n_heads"),
}

ELSEWHERE = {  # keys that another choice of their group has
    "train data.path=my.txt": ("data.path", "data.kind=stdlib", "data=text"),
    "train model/ffn=dense model.ffn.n_groups=2": ("model.ffn.n_groups", "dense", "model/ffn=moe"),
    "train model.rope.factor=4": ("model.rope.factor", "plain", "model/rope=yarn"),
    "train model/attention=gqa model.attention.kv_lora_rank=4": (
        "model.attention.kv_lora_rank",
        "gqa",
        "model/attention=mla",
    ),
    "train model.attention.kind=gqa": ("gqa", "model/attention=mla"),
}

REFUSED = {  # a line, how its message begins, and what else it says
    # choices of groups
    "train model=": ("model=", "nano"),
    "train model=_base": ("model=_base", "unknown choice", "nano"),
    "train optim=[adamw,sgd]": ("optim=sgd", "adamw"),
    "train model/attention=null": ("model/attention=null", "mla"),
    "train data=tokenizer": ("data=tokenizer", "stdlib"),
    "train data=./my.txt": ("data", "my.txt", "stdlib"),
    "train data=configs/data/text.yaml": ("data=configs/data/text.yaml", "stdlib"),
    "train logger=[csv,mlflow]": ("logger=mlflow", "wandb"),
    "train model=nano,tiny": ("model=nano,tiny", "sweep"),
    "train model=[nano,tiny]": ("model=[nano,tiny]", "unknown choice"),
    "train model=???": ("model", "must be given"),
    f"train model={LONG}": ("model=xxx", "5006 characters"),
    "train -m model=nano,huge": ("model=huge", "tiny"),
    # wrong types, null, lists for scalars and the reverse
    "train seed=1e3": ("seed=1000.0", "integer"),
    "train seed='\"1\"'": ("seed=1", "integer"),
    "train model.norm_eps=true": ("model.norm_eps=True", "number"),
    "train model.ffn.norm_topk=yes": ("model.ffn.norm_topk=yes", "boolean"),
    "train model.dim={a:1}": ("model.dim={'a': 1}", "integer"),
    "train checkpoint=null": ("checkpoint=null", "a group of keys"),
    "train checkpoint=[1]": ("checkpoint=[1]", "list"),
    "train resume_allow=data.path": ("resume_allow=data.path", "a list"),
    "train resume_allow=[3]": ("resume_allow.0=3", "string"),
    "train trainer.devices=[0,1]": ("trainer.devices=[0, 1]", "'auto'", "integer"),
    "train model.sizes.head_dim=wide": ("model.sizes.head_dim=wide", "integer"),
    "train model.sizes=3": ("model.sizes", "a group of keys"),
    "train logger.csv=3": ("logger.csv=3", "_target_"),
    "train +callbacks.mine._target_=3": ("callbacks.mine=", "_target_"),
    # values out of range, empty or very long
    "train trainer.devices=0": ("trainer.devices=0", "'auto'", "greater than 0"),
    f"train trainer.max_steps={10**30}": (f"trainer.max_steps={10**30}", "less than"),
    f"train seed={'1' * 5000}": ("seed=111", "5005 characters"),
    f"train run_id={LONG}": ("run_id=xxx", "5000 characters", "pattern"),
    f"train {LONG}=3": ("xxx", "5002 characters", "too long"),
    f"train seed={'[' * 300}{']' * 300}": ("seed=[[[", "recursion"),
    "train optim.lr=1e-999": ("optim.lr=0.0", "greater than 0"),
    "train run_dir=": ("run_dir=", "at least 1 character"),
    "train seed=": ("seed=", "integer"),
    "train data=jsonl data.path=x data.field=": ("data.field=", "at least 1 character"),
    # rules between keys
    "train data=hub data.name=x data.val_split=train": ("data.val_split=train", "train on"),
    "train data=synthetic data.seq_len=8": ("data.seq_len=8", "at least 16"),
    "train data=synthetic data/tokenizer=bpe": ("data.tokenizer.kind=bpe", "bytes"),
    "train model/rope=yarn data.seq_len=2048": ("model.max_seq_len=2048", "1024"),
    "train model/rope=yarn model.rope.beta_slow=64": ("model.rope.beta_slow=64.0", "beta_fast"),
    "train seed=3 seed=wide": ("seed=wide", "integer"),
    "train -m seed=1,wide": ("seed=wide", "integer"),
    "train data/tokenizer=pretrained": ("data.tokenizer.path", "must be given"),
    "train data/tokenizer=pretrained data.tokenizer.path=no/such/tokenizer.json": (
        "data.tokenizer.path=no/such/tokenizer.json",
        "no such file",
    ),
    # Hydra's grammar
    "train ''": ("''", "KEY=VALUE"),
    "train ' '": ("' '", "KEY=VALUE"),
    "train =": ("=", "KEY=VALUE"),
    "train train.py": ("train.py", "KEY=VALUE"),
    "train model..dim=3": ("model..dim=3", "cannot be read"),
    "train model.dim==3": ("model.dim==3", "cannot be read"),
    "train 'model.dim=48 model.n_layers=2'": ("model.dim=48 model.n_layers=2", "cannot be read"),
    "train seed=3]": ("seed=3]", "cannot be read"),
    "train model.dim=nofunc(3)": ("model.dim=nofunc(3)", "cannot be read"),
    "train model.dim=choice(1,2)": ("model.dim=choice(1,2)", "sweep"),
    "train model.dim=模型": ("model.dim=模型", "quote"),
    "train modèl.dim=3": ("modèl.dim=3", "cannot be read"),
    "train 'run_dir=\"a' seed=3": ('run_dir="a', "quote"),
    "train 'seed=\"a\nb\"'": ("seed=a b", "integer"),
    "train 'sead\n=3'": ("sead =3", "cannot be read"),
    # adding and deleting
    "train +model.dim=3": ("model.dim", "leave out the +"),
    "train +model=nano": ("model", "leave out the +"),
    "train ~model": ("model", "must be given"),
    "train ~model=huge": ("model=huge", "not what is chosen"),
    "train ~seed=5": ("seed", "another value"),
    "train ~optim.lr": ("optim.lr", "must be given"),
    "train model@foo=nano": ("model@foo", "leave out the @"),
    # interpolations to nowhere
    "train seed=${nowhere}": ("seed", "'nowhere' not found"),
    "train seed=${seed}": ("seed", "Recursive"),
    "train seed=${oc.env:NO_SUCH_VARIABLE}": ("seed", "NO_SUCH_VARIABLE"),
    "train seed=${no_such:3}": ("seed", "no_such"),
    "train seed=${": ("seed=${", "cannot be read"),
    "train seed=${.}": ("seed=${.}", "cannot be read"),
    # flags
    "train --bogus": ("--bogus", "unknown flag"),
    "train --seed=3": ("--seed=3", "unknown flag", "written seed=3"),
    "train --cfg": ("argument --cfg", "expected one argument"),
    "train --cfg nothing": ("argument --cfg", "'job'"),
    "train --resolve": ("--resolve", "--cfg"),
    "train --config-name nothing": ("--config-name nothing", "Cannot find"),
    "train --cfg job model=null": ("model=null", "nano"),
    "eval --ckpt=x": ("--ckpt=x", "written ckpt=x"),
    # what is continued or begun with
    "train resume=auto": ("resume=auto", "run_dir=DIR"),
    "train resume=auto run_dir=null": ("resume=auto", "run_dir=DIR"),
    "train resume=nowhere": ("resume=nowhere", "no such file or folder"),
    "train resume=": ("resume=", "at least 1 character"),
    "train init_from=nowhere": ("init_from=nowhere", "no such file or folder"),
    "train resume=x init_from=y": ("init_from=y", "resume=x"),
    f"train run_dir={__file__}": ("run_dir=", "a file of that name"),
    # the other commands
    "eval ckpt=nowhere": ("ckpt=nowhere", "no such file or folder"),
    "eval runs/first": ("runs/first", "KEY=VALUE"),
    "eval ckpt=x parts=lm": ("parts=lm", "a list"),
    "eval ckpt=x parts=[lmm]": ("parts.0=lmm", "'lm'"),
    "eval ckpt=x tasks=[blimpp]": ("tasks=", "blimp"),
    "eval ckpt=x stride=5 parts=[code]": ("stride=5", "lm"),
    "eval ckpt=x +bundles.mine.path=x": ("bundles.mine.delimiter", "must be given"),
    "generate ckpt=nowhere prompt=x": ("ckpt=nowhere", "no such file or folder"),
    "export ckpt=nowhere out=x": ("ckpt=nowhere", "no such file or folder"),
    "export ckpt=x": ("out", "must be given"),
    "import src=nowhere out=x": ("src=nowhere", "no such file or folder"),
    "import src=x out=y data/tokenizer=bytes": ("data/tokenizer=bytes", "src"),
    "bench suite=none": ("suite=none", "'data'"),
    "bench contexts=1,x": ("contexts=x", "integer"),
    "ablate ablation=nothing out=x": ("ablation=nothing", "smoke"),
    "ablate ablation=smoke plan=true seed=3": ("seed", "leave it out"),
    "ablate ablation=smoke jobs=0 out=x": ("jobs=0", "greater than 0"),
}

LINES = [*TYPOS, *ELSEWHERE, *REFUSED]
AS_PROCESSES = (
    "train model.n_layer=3",
    "train --seed=3",
    "train data.path=my.txt",
    "train 'seed=\"a\nb\"'",
    "train resume=nowhere",
    "train -m seed=1,wide",
    "eval ckpt=nowhere",
    "generate ckpt=nowhere prompt=x",
    "ablate ablation=smoke plan=true model.n_head=4",
    "bench suite=none",
)


def start(line: str) -> None:
    """A command as its file starts it."""
    import eval as evaluation
    import train as training

    command, *words = shlex.split(line)
    if command == "train":
        sys.argv = ["train.py", *words]
        cli.main(training.train, name="train", kind=RunConfig)
    elif command == "eval":
        sys.argv = ["eval.py", *words]
        cli.main(evaluation.evaluate, name="eval", kind=EvalConfig, passed_on=DATA + LOGGER)
    else:
        sys.argv = ["mla-lm", command, *words]
        verbs.main()


@pytest.fixture(autouse=True)
def _as_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a command changes for its process is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {"multirun.yaml"}  # Hydra's, of a sweep


def refusal(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says of its line, behind `error: `."""
    with pytest.raises(SystemExit) as caught:
        start(line)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert len(printed.err) < 500
    assert printed.err.startswith("error: ")
    return printed.err.removeprefix("error: ").rstrip("\n")


def test_there_are_many() -> None:
    assert len(LINES) == len({*LINES}) >= 130
    assert {*AS_PROCESSES} <= {*LINES}


@pytest.mark.parametrize("line", TYPOS)
def test_typo_is_named_with_the_key_that_was_meant(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key, meant = TYPOS[line]
    assert refusal(line, capsys) == f"{key}: unknown key; the nearest known one is {meant}"


@pytest.mark.parametrize("line", ELSEWHERE)
def test_key_of_another_choice_is_named_with_it(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(line, capsys)
    assert all(part in said for part in (*ELSEWHERE[line], "it belongs to"))


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line[:60])
def test_mistake_is_named_first(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    named, *said = REFUSED[line]
    found = refusal(line, capsys)
    assert found.startswith(named)
    assert all(part in found for part in said)


def test_none_of_them_needs_torch(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from tests.test_malformed import start\n"
        "for line in json.load(sys.stdin):\n"
        "    try:\n"
        "        start(line)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(LINES),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-1000:]
    assert len(result.stderr.splitlines()) == len(LINES)


@pytest.mark.parametrize("line", AS_PROCESSES)
def test_process_says_it_soon(line: str, tmp_path: Path) -> None:
    command, *words = shlex.split(line)
    first = [f"{command}.py"] if command in ("train", "eval") else ["-m", "mla_lm", command]
    seconds = []
    while not seconds or (seconds[0] >= SECONDS and len(seconds) < 2):
        begun = time.perf_counter()
        result = run(*first, *words, cwd=tmp_path)
        seconds.append(time.perf_counter() - begun)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("error: ")
        assert result.stdout == ""
    assert min(seconds) < SECONDS, seconds
