"""A malformed command ends with status 2 and one line that names the key, before torch is imported.

The table holds commands and the parts of their line: how it starts, and what else it says.
"""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mla_lm import __main__ as verbs
from mla_lm.config import cli
from mla_lm.errors import guard
from tests.processes import run

LONG = "x" * 5000
UNKNOWN = "unknown key; do you mean"

TYPOS = {  # a command, the key that nobody knows, the nearest one
    "train model.n_layer=3": ("model.n_layer", "model.n_layers=3"),
    "train +model.n_head=3": ("model.n_head", "model.n_heads=3"),
    "train model.attention.kv_rank=3": (
        "model.attention.kv_rank",
        "model.attention.kv_lora_rank=3",
    ),
    "train optim.LR=3": ("optim.LR", "optim.lr=3"),
    "train lr=1e-3": ("lr", "optim.lr=0.001"),
    "train trainer.seed=3": ("trainer.seed", "seed=3"),
    "train modl=nano": ("modl", "model=nano"),
    "train model/attentio=gqa": ("model/attentio", "model/attention=gqa"),
    "train attention=gqa": ("attention", "model/attention=gqa"),
    "train epochs=3": ("epochs", "trainer.max_steps=N"),
    "train steps=3": ("steps", "trainer.max_steps=3"),
    "train tokenizer=bytes": ("tokenizer", "data/tokenizer=bytes"),
    "train wandb=true": ("wandb", "logger=wandb"),
    "train dataset=my.txt": ("dataset", "data=text data.path=my.txt"),
    "train device=cpu": ("device", "trainer.accelerator=cpu"),
    "eval ckpt=x device=cpu": ("device", "accelerator=cpu"),
    "eval checkpoint=runs/x": ("checkpoint", "ckpt=runs/x"),
    "eval model=runs/x": ("model", "ckpt=runs/x"),
    "train -m model=nano,tiny sead=3": ("sead", "seed=3"),
    "eval cpkt=x ckpt=x": ("cpkt", "ckpt=x"),
    "generate ckpt=x promt=y": ("promt", "prompt=y"),
    "export ckpt=x out=y dtypes=bfloat16": ("dtypes", "dtype=bfloat16"),
    "bench suit=train": ("suit", "suite=train"),
    "ablate ablation=smoke plan=true model.n_head=4": ("model.n_head", "model.n_heads=4"),
}

REFUSED: dict[str, tuple[str, ...]] = {
    # keys that another option of their group has
    "train data.path=my.txt": ("data.path: no key of data.kind=stdlib", "data=text"),
    "train model/ffn=dense model.ffn.n_groups=2": ("model.ffn.n_groups: no key", "model/ffn=moe"),
    "train model.attention.kind=gqa": ("model.attention.", "gqa", "model/attention=mla"),
    # options of groups
    "train model=huge": ("model=huge: unknown choice", "base, deepseek_v3, medium, mini, nano"),
    "train experiment=nothing": ("experiment=nothing: unknown choice", "stories"),
    "train logger=[csv,mlflow]": ("logger=mlflow: unknown choice", "wandb"),
    f"train model={LONG}": ("model=xxx", "5000 characters"),
    "train model=mha": ("model=mha: unknown choice", "; or do you mean model/attention=mha\n"),
    "train data=my.txt": ("data=my.txt: unknown choice", "mean data=text data.path=my.txt\n"),
    "train zzzz=3": ("zzzz: unknown key\n",),  # nothing is near
    # wrong types, values out of range
    "train model.dim=wide": ("model.dim=wide: must be", "integer"),
    "train model.dim.deep=3": ("model.dim={'deep': 3}: must be", "integer"),
    "train model.tie_embeddings=1": ("model.tie_embeddings=1: must be", "boolean"),
    "train model.attention=null": ("model.attention=null: must be a group of keys",),
    "train model.attention.kind=linear": ("model.attention.kind=linear: must be one of 'mla'",),
    "train model.sizes.head_dim=wide": ("model.attention.v_head_dim=wide: must be", "integer"),
    "train data=text": ("data.path: must be given",),
    "train data.val_fraction=1": ("data.val_fraction=1: must be less than 1",),
    "train optim.lr=nan": ("optim.lr=nan: must be a finite number",),
    "train optim.betas=[0.9,1.5]": ("optim.betas.1=1.5: must be less than 1",),
    f"train trainer.max_steps={10**30}": (f"trainer.max_steps={10**30}: must be less than",),
    "train trainer.devices=[0,1]": ("trainer.devices=[0, 1]: must be", "'auto'", "integer"),
    "train precision=fp8": ("precision=fp8: must be", "'bf16-mixed'"),
    "train precision=float32": ("precision=float32: must be", "; do you mean 32-true\n"),
    "train precision=bf16": ("precision=bf16: must be", "; do you mean bf16-mixed\n"),
    "train model.attention=gqa": ("model.attention=gqa: must", "model/attention=gqa\n"),
    "train -m seed=1,wide": ("seed=wide: must be", "integer"),
    "train logger.csv=3": ("logger.csv=3: must have a class as its _target_",),
    "train ~model.dim": ("model.dim: must be given",),
    # rules between keys
    "train model.attention.qk_rope_head_dim=7": ("model.attention.qk_rope_head_dim=7", "even"),
    "train model/attention=gqa model.attention.rope_head_dim=50": (
        "model.attention.rope_head_dim=50: must be at most head_dim=48",
    ),
    "train model/attention=mha model.attention.n_kv_heads=1": (
        "model.attention.n_kv_heads=1: must be 4 for mha",
    ),
    "train model/attention=gqa model.n_heads=3": ("model.n_heads=3: must be divisible by",),
    "train model.ffn.n_activated_experts=9": ("model.ffn.n_activated_experts=9", "=8"),
    "train model.ffn.n_groups=3": ("model.ffn.n_groups=3: must divide n_routed_experts=8",),
    "train model.ffn.n_groups=8 model.ffn.topk_groups=8": ("model.ffn.n_groups=8", "one expert"),
    "train model.ffn.n_groups=2 model.ffn.topk_groups=3": ("model.ffn.topk_groups=3", "n_groups=2"),
    "train model.ffn.n_groups=4 model.ffn.n_activated_experts=3": (
        "model.ffn.n_activated_experts=3: must be at most 2",
    ),
    "train model.dim=100 model.ffn.execution=grouped_mm": (
        "model.ffn.execution=grouped_mm",
        "multiples of 8",
    ),
    "train model.n_dense_layers=5": ("model.n_dense_layers=5: must be at most n_layers=4",),
    "train model.mtp_depth=256": ("model.mtp_depth=256: must be below data.seq_len=256",),
    "train model/ffn=dense": ("balance.bias_update_speed=0.01", "balance=none"),
    "train model.max_seq_len=16": ("data.seq_len=256: must be at most model.max_seq_len=16",),
    "train model.vocab_size=300 data.tokenizer.vocab_size=400": ("model.vocab_size=300", "=400"),
    "train model/rope=yarn model.rope.factor=2 data.seq_len=2048": ("model.max_seq_len=2048",),
    "train model/rope=yarn model.rope.original_max_seq_len=0": (
        "model.rope.original_max_seq_len=0: must be greater than 0",
    ),
    "train data=hub data.name=x data.val_split=train": ("data.val_split=train", "training split"),
    "train data=synthetic data/tokenizer=bpe": ("data.tokenizer.kind=bpe: must be bytes",),
    "train trainer=fsdp trainer.compile=true": ("trainer.compile=true", "strategy=ddp"),
    # what Hydra cannot read
    "train ''": ("'': must be written KEY=VALUE",),
    "train nano": ("nano: must be written KEY=VALUE: model=nano\n",),
    "train no!one=3": ("no!one=3: must be written KEY=VALUE",),
    # what is no Hydra is text
    "train model.dim=[1,2": ("model.dim=[1,2: must be", "integer"),
    "train model.dim=模型": ("model.dim=模型: must be", "integer"),
    "train model.dim=48,64": ("model.dim=48,64: several values at once are a sweep: add -m",),
    "train seed=${nowhere}": ("seed: Interpolation key 'nowhere' not found",),
    "train model.sizes.head_dims=4": ("Could not override 'model.sizes.head_dims'",),
    # flags
    "train --bogus": ("--bogus: must be written KEY=VALUE: --help shows keys\n",),
    "train --seed=3": ("--seed=3: must be written KEY=VALUE: seed=3\n",),
    "train --model nano": ("--model: must be written KEY=VALUE: model=nano\n",),
    "train --batch-size 8": ("--batch-size: must", "; do you mean data.batch_size=8\n"),
    "generate --ckpt runs/x": ("--ckpt: must be written KEY=VALUE: ckpt=runs/x\n",),
    # files
    "train resume=auto": ("resume=auto: needs run_dir=DIR",),
    "train resume=nowhere": ("resume=nowhere: no such file or folder",),
    "train init_from=nowhere": ("init_from=nowhere: no such file or folder",),
    "train resume=x init_from=y": ("resume=x: no such file or folder",),
    f"train run_dir={__file__}": ("run_dir=", "a file of that name"),
    "train data=text data.path=no.txt": ("data.path=no.txt: no such file",),
    "train data/tokenizer=pretrained": ("data.tokenizer.path: must be given",),
    "train data/tokenizer=pretrained data.tokenizer.path=no/such/tokenizer.json": (
        "data.tokenizer.path=no/such/tokenizer.json: no such file",
    ),
    # the other commands
    "eval": ("ckpt: must be given",),
    "eval ckpt=nowhere": ("ckpt=nowhere: no such file or folder",),
    "eval runs/x": ("runs/x: must be written KEY=VALUE: ckpt=runs/x\n",),
    "eval ckpt=x parts=[lmm]": ("parts.0=lmm: must be", "'lm'"),
    "eval ckpt=x stride=5 parts=[code]": ("stride=5", "lm"),
    "trian": ("trian: unknown verb", "generate"),
    "generat ckpt=x": ("generat: unknown verb", "; do you mean generate\n"),
    "generate ckpt=x prompt": ("prompt: must be written KEY=VALUE",),
    "generate ckpt=nowhere prompt=x": ("ckpt=nowhere: no such file or folder",),
    "generate runs/x prompt=x": ("runs/x: must be written KEY=VALUE: ckpt=runs/x\n",),
    "generate ckpt=x prompt=@no.txt": ("prompt='@no.txt': ",),
    "generate ckpt=x stop=a stop=": ("stop.1=: must have at least 1 character",),
    "import src=nowhere out=x": ("src=nowhere: no such file or folder",),
    "import src=x out=y data/tokenizer=bytes": ("data/tokenizer=bytes: ", "src"),
    "ablate ablation=nothing out=x": ("ablation=nothing", "smoke"),
    "ablate ablation=smoke arms=[mla]": ("arms: are those of", "ablation=FILE.yaml"),
}
REFUSED |= {line: (f"{key}: {UNKNOWN} {meant}\n",) for line, (key, meant) in TYPOS.items()}
AS_PROCESSES = ("train model.n_layer=3", "eval ckpt=nowhere", "generate ckpt=nowhere prompt=x")


def start(line: str) -> None:
    """A command as its file starts it."""
    import eval as evaluation
    import train as training

    command, *words = shlex.split(line)
    if command == "train":
        sys.argv = ["train.py", *words]
        cli.main(training.train, name="train", configured=training.configured)
    elif command == "eval":
        sys.argv = ["eval.py", *words]
        cli.main(
            evaluation.evaluate,
            name="eval",
            configured=evaluation.configured,
            passed_on=evaluation.DATA + evaluation.LOGGER,
        )
    else:
        sys.argv = ["mla-lm", command, *words]
        verbs.main()


@pytest.fixture(autouse=True)
def _as_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a command changes for its process is put back; it leaves no file."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line[:60])
def test_mistake_is_one_line_with_key_and_rule(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        start(line)
    printed = capsys.readouterr()
    beginning, *parts = REFUSED[line]
    assert (caught.value.code, printed.out) == (2, "")
    assert len(printed.err.splitlines()) == 1
    assert len(printed.err) < 500
    assert printed.err.startswith(f"error: {beginning}")
    assert all(part in printed.err for part in parts)


def test_torch_is_not_imported_for_it(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from tests.config.test_refusals import start\n"
        "for line in json.load(sys.stdin):\n"
        "    try:\n"
        "        start(line)\n"
        "    except SystemExit:\n"
        "        assert 'torch' not in sys.modules, line\n"
    )
    result = run("-c", code, cwd=tmp_path, stdin=json.dumps([*REFUSED]))
    assert (result.returncode, result.stdout) == (0, "")
    assert len(result.stderr.splitlines()) == len(REFUSED)


@pytest.mark.parametrize("line", AS_PROCESSES)
def test_process_says_it_too(line: str, tmp_path: Path) -> None:
    command, *words = shlex.split(line)
    first = [f"{command}.py"] if command in ("train", "eval") else ["-m", "mla_lm", command]
    result = run(*first, *words, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_an_interrupt_is_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        guard(interrupted)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_text_that_a_terminal_cannot_show_ends_nothing(encoding: str, tmp_path: Path) -> None:
    code = (
        "from mla_lm.errors import UserError, guard\n"
        "def action():\n"
        "    print('loss 終 \\udcff')\n"  # the last: of a file name that is not UTF-8
        "    raise UserError('data.path=終: no such file')\n"
        "guard(action)\n"
    )
    result = run("-c", code, cwd=tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert result.stdout == "loss ? \\udcff\n"
    assert (result.returncode, result.stderr) == (2, "error: data.path=\\u7d42: no such file\n")
