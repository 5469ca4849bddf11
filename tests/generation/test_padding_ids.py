"""Ids beyond the tokenizer's are padding of the vocabulary: no choice ever falls on one.

The head is made to prefer them everywhere, so that one forgotten place is seen at once.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers

from mla_lm import Transformer, load_checkpoint, load_config
from mla_lm.commands import export
from mla_lm.data import Tokenizer
from mla_lm.data.batch import Annotator
from mla_lm.evaluation.language_model import evaluate
from mla_lm.evaluation.scoring import Request, score
from mla_lm.generation import Completion, Sampling, generate
from mla_lm.objective.metrics import loss_sums
from tests.conftest import randomized, write_checkpoint

SAMPLED = Sampling(1.2, top_k=20, top_p=0.9)
PROMPTS = ["def f(x):", "the word"]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("padding")
    cfg = load_config(["model=nano", "data.seq_len=48", "model.mtp_depth=2"])
    torch.manual_seed(0)
    model = randomized(Transformer(cfg.model))
    with torch.no_grad():
        model.lm_head.weight[tokenizer.vocab_size :].mul_(100)
    path = folder / "checkpoints" / "step-000003.ckpt"
    return write_checkpoint(path, cfg, tokenizer, model)


@pytest.mark.parametrize("sampling", [Sampling(0), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("n_drafts", [0, 2])
def test_decoding_gives_tokens_only(
    sampling: Sampling, n_drafts: int, ckpt: Path, tokenizer: Tokenizer
) -> None:
    model, _, _ = load_checkpoint(ckpt)
    prompts = torch.tensor([tokenizer.encode(prompt)[:2] for prompt in PROMPTS])
    assert model(prompts).logits.argmax(-1).min() >= tokenizer.vocab_size
    options = {"temperature": sampling.temperature, "top_k": sampling.top_k, "n_drafts": n_drafts}
    assert generate(model, prompts, max_new_tokens=30, **options).max() < tokenizer.vocab_size
    bare = Transformer(model.cfg).eval()  # as a caller makes it, who knows no tokenizer
    bare.load_state_dict(model.state_dict())
    completion = Completion(
        bare, tokenizer, PROMPTS, max_new_tokens=30, sampling=sampling, n_drafts=n_drafts
    )
    assert max(max(ids) for ids in completion.decoder.run()) < tokenizer.vocab_size


@torch.no_grad()
def test_greedy_choices_of_a_text_are_tokens(ckpt: Path, tokenizer: Tokenizer) -> None:
    """In likelihood questions, exact matches, acceptance of drafts; likelihoods count all ids."""
    model, cfg, _ = load_checkpoint(ckpt)
    text = torch.tensor([tokenizer.encode(PROMPTS[0] * 3)[:12]])
    logits = model(text).logits
    best = int(logits[0, -1, : tokenizer.vocab_size].argmax())
    (found,) = score(model, [Request(tuple(text[0].tolist()), (best,))])
    assert found.greedy
    assert found.log_likelihood == pytest.approx(float(logits[0, -1].log_softmax(-1)[best]))

    lengths = torch.from_numpy(tokenizer.byte_lengths)
    answers = logits[..., : tokenizer.vocab_size].argmax(-1)
    assert loss_sums(logits, answers, lengths).sum(0)[3:].tolist() == [1, 1]  # exact match
    annotate = Annotator(cfg.data, tokenizer)
    acceptance = evaluate(model, [text], lengths, annotate).metrics
    model.lm_head.weight[tokenizer.vocab_size :] = 0
    without = evaluate(model, [text], lengths, annotate).metrics
    assert acceptance["mtp/acceptance_1"] == without["mtp/acceptance_1"]
    assert acceptance["val/loss"] > without["val/loss"] + 1


def test_transformers_leaves_them_out_of_an_exported_folder(
    ckpt: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export.run([f"ckpt={ckpt}", f"out={tmp_path / 'out'}"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    prompt = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(PROMPTS[0])]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 20, "do_sample": False}
    new = theirs.generate(prompt, **options)[0, prompt.shape[1] :]
    assert new.max() < tokenizer.vocab_size
    model, _, _ = load_checkpoint(ckpt)
    ours = generate(model, prompt, max_new_tokens=20, temperature=0, stop=tokenizer.end_of_text)
    assert ours[0, prompt.shape[1] :].tolist() == new.tolist()
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["suppress_tokens"][0] == tokenizer.vocab_size
