"""A mistake in an override is one line that names the key."""

import re

import pytest

from mla_lm import load_config
from mla_lm.errors import UserError

BASE = ("model=nano", "data.seq_len=32")
UNION_TAG = re.compile(r"\.(mla|mha|gqa|mqa|moe|dense)(\.|=|:)")

TYPOS = [
    ("model.n_head=4", "model.n_head", "model.n_heads"),
    ("+model.n_head=4", "model.n_head", "model.n_heads"),
    ("++model.n_layer=4", "model.n_layer", "model.n_layers"),
    ("model.attention.kv_rank=4", "model.attention.kv_rank", "model.attention.kv_lora_rank"),
    ("+model.ffn.n_expert_groups=2", "model.ffn.n_expert_groups", "model.ffn.n_groups"),
    ("model.sizes.head_dims=4", "model.sizes.head_dims", "model.sizes.head_dim"),
    ("data.tokenizer.vocab=300", "data.tokenizer.vocab", "data.tokenizer.vocab_size"),
    ("sead=3", "sead", "seed"),
    ("checkpoint.every_n_step=3", "checkpoint.every_n_step", "checkpoint.every_n_steps"),
    ("~optim.lrs", "optim.lrs", "optim.lr"),
    ("callbacks.samples.prompt=[]", "callbacks.samples.prompt", "callbacks.samples.prompts"),
]

BAD_VALUES = [
    ("model.dim=wide", "model.dim=wide", "integer"),
    ("model.dim=48.5", "model.dim=48.5", "integer"),
    ("model.dim=null", "model.dim=null", "integer"),
    ("model.dim=[48]", "model.dim=[48]", "integer"),
    ("model.tie_embeddings=1", "model.tie_embeddings=1", "boolean"),
    ("data=text data.path=3", "data.path=3", "string"),
    ("data=text data.path=''", "data.path=", "at least 1 character"),
    ("data=text", "data.path", "must be given"),
    ("optim.lr=fast", "optim.lr=fast", "number"),
    ("optim.lr=nan", "optim.lr=nan", "finite"),
    ("optim.lr=inf", "optim.lr=inf", "finite"),
    ("loss.mtp_weight=-inf", "loss.mtp_weight=-inf", "finite"),
    ("optim.lr=-0.1", "optim.lr=-0.1", "greater than 0"),
    ("optim.lr=0", "optim.lr=0", "greater than 0"),
    ("trainer.max_steps=-1", "trainer.max_steps=-1", "greater than 0"),
    ("model.n_layers=0", "model.n_layers=0", "greater than 0"),
    ("seed=-1", "seed=-1", "greater than or equal to 0"),
    ("seed=5000000000", "seed=5000000000", "less than"),
    ("balance.bias_update_speed=-1", "balance.bias_update_speed=-1", "greater than or equal"),
    ("checkpoint.keep=1", "checkpoint.keep=1", "greater than or equal to 2"),
    ("data.val_fraction=1", "data.val_fraction=1", "less than 1"),
    ("data.tokenizer.vocab_size=200", "data.tokenizer.vocab_size=200", "257"),
    ("model.attention.kv_lora_rank=0", "model.attention.kv_lora_rank=0", "greater than 0"),
    ("model.ffn.route_scale=none", "model.ffn.route_scale=none", "number"),
    ("optim.betas=[0.9]", "optim.betas", "must"),
    ("optim.betas=[0.9,0.95,0.99]", "optim.betas", "2"),
    ("optim.betas=[0.9,1.5]", "optim.betas.1=1.5", "less than 1"),
    ("optim.betas=0.9", "optim.betas=0.9", "a list"),
    ("data.tokenizer=3", "data.tokenizer=3", "a group of keys"),
    ("model.attention=null", "model.attention=null", "a group of keys"),
    ("model.attention.kind=linear", "model.attention.kind=linear", "'mla'"),
    ("model.ffn.kind=sparse", "model.ffn.kind=sparse", "'moe'"),
    ("optim.kind=sgd", "optim.kind=sgd", "'adamw'"),
    ("optim.schedule=step", "optim.schedule=step", "'cosine'"),
    ("precision=fp8", "precision=fp8", "'bf16-mixed'"),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu", "'gpu'"),
    ("~model.dim", "model.dim", "must be given"),
]

RULES = [  # overrides, the last of which is named, and what is said of it
    ("model.attention.qk_rope_head_dim=7", "even"),
    ("model/attention=gqa model.attention.rope_head_dim=18", "head_dim=16"),
    ("model/attention=mha model.attention.n_kv_heads=1", "must be 3 for mha"),
    ("model/attention=mqa model.attention.n_kv_heads=3", "must be 1 for mqa"),
    ("model.ffn.n_activated_experts=5", "n_routed_experts=4"),
    ("model.ffn.n_groups=3", "divide n_routed_experts=4"),
    ("balance.bias_decay_fraction=1.5", "less than or equal to 1"),
    ("balance.switch_loss_weight=-1", "greater than or equal"),
    ("model.ffn.execution=fast", "grouped_mm"),
    ("model.dim=100 model.ffn.execution=grouped_mm", "multiples of 8"),
    ("trainer.activation_checkpointing=yes", "must be"),
    ("model.ffn.n_groups=2 model.ffn.topk_groups=3", "n_groups=2"),
    ("model.ffn.n_groups=2 model.ffn.n_activated_experts=3", "topk_groups=1"),
    ("model.n_dense_layers=3", "n_layers=2"),
    ("model.mtp_depth=32", "below"),
]

RULES_BETWEEN_KEYS = [  # overrides, another key that is named, and what is said of it
    ("model/attention=gqa model.sizes.head_dim=17", "model.attention.rope_head_dim=17", "even"),
    ("model/ffn=dense", "balance.bias_update_speed=0.01", "balance=none"),
    ("model/ffn=dense balance=switch", "balance.switch_loss_weight=0.01", "balance=none"),
    ("model.ffn.n_groups=4 model.ffn.topk_groups=4", "model.ffn.n_groups=4", "one expert a group"),
    ("model.vocab_size=300 data.tokenizer.vocab_size=400", "model.vocab_size=300", "=400"),
    ("model.max_seq_len=16", "data.seq_len=32", "model.max_seq_len=16"),
    (
        "model/attention=gqa model.n_heads=3 model.attention.n_kv_heads=2",
        "model.n_heads=3",
        "divisible by attention.n_kv_heads=2",
    ),
    (
        "balance=sequence model.n_dense_layers=2 model.mtp_depth=0",
        "balance.sequence_loss_weight=0.01",
        "balance=none",
    ),
]

CHOICES = [
    ("model=huge", "nano"),
    ("model/attention=flash", "mla"),
    ("model/ffn=swiglu", "dense"),
    ("model/rope=spiral", "plain"),
    ("balance=aux", "bias"),
    ("data=web", "stdlib"),
    ("optim=sgd", "adamw"),
    ("trainer=gpu", "default"),
    ("logger=mlflow", "tensorboard"),
    ("callbacks=many", "default"),
]

MALFORMED = [
    "model.dim",
    "=3",
    "model.dim=[1,2",
    'model.dim="48',
    "model.dim=48,64",
    "model.dim=${model.nothing}",
    "model.dim=${model.n_layers",
    "model=null",
    "data=null",
    "model=3",
    "model.sizes=null",
    "experiment=nothing",
]


def refusal(overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config([*BASE, *overrides.split()])
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert not UNION_TAG.search(message)
    return message


@pytest.mark.parametrize(("override", "key", "nearest"), TYPOS)
def test_unknown_key_is_named_with_the_nearest_known_one(
    override: str, key: str, nearest: str
) -> None:
    assert refusal(override) == f"{key}: unknown key; the nearest known one is {nearest}"


@pytest.mark.parametrize(("override", "shown", "rule"), BAD_VALUES)
def test_bad_value_is_named_with_its_rule(override: str, shown: str, rule: str) -> None:
    named, _, said = refusal(override).partition(": ")
    assert named == shown or ("=" not in shown and named.startswith(shown))
    assert rule in said


@pytest.mark.parametrize(
    ("overrides", "shown", "rule"),
    [*((words, words.split()[-1], rule) for words, rule in RULES), *RULES_BETWEEN_KEYS],
)
def test_broken_rule_is_named_with_both_sides(overrides: str, shown: str, rule: str) -> None:
    named, _, said = refusal(overrides).partition(": ")
    assert named == shown
    assert rule in said


@pytest.mark.parametrize(("choice", "one_of"), CHOICES)
def test_unknown_choice_lists_the_known_ones(choice: str, one_of: str) -> None:
    named, _, said = refusal(choice).partition(": ")
    assert named == choice
    assert one_of in re.split(r"[ ,]+", said)
    assert "_base" not in said


@pytest.mark.parametrize("override", MALFORMED)
def test_malformed_override_is_one_line_that_names_it(override: str) -> None:
    key = override.split("=")[0] or override
    assert key in refusal(override)
