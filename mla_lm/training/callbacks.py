"""What a user is told during a run: progress, samples, loss spikes."""

import re
import textwrap
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lightning as L
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from mla_lm.checkpoint.alike import require_alike
from mla_lm.cost import train_flops_per_token
from mla_lm.data.loader import Stream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.evaluation.progress import Bar
from mla_lm.files import write_text
from mla_lm.generation import Completion, Sampling
from mla_lm.machine import MatmulPeak, resolve_precision
from mla_lm.training.checkpoints import Shown
from mla_lm.training.module import LanguageModel
from mla_lm.training.plots import publish

SEARCHED = 2**16  # tokens of the validation split, for documents whose start is a prompt
N_PROMPTS, START = 3, 16  # documents, tokens of each
FIRST_WORDS = re.compile(r"\s*\S+(\s+\S+){0,3}(?=\s)")


class Progress(L.Callback):
    """Loss, speed and time left: in a bar on a terminal, else in a line for every logged step.

    `train/mfu` is the model's FLOPs per second over those of a large matrix product in the run's
    number format, measured at its start: MFU on a GPU, share of matmul peak on a CPU.
    """

    def __init__(self) -> None:
        self.bar = Bar()
        self.text = ""
        self.since: float | None = None  # None from a validation to the next batch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        cfg = pl_module.cfg
        precision = resolve_precision(cfg.precision, pl_module.device.type)
        self.peak = MatmulPeak(precision, pl_module.device)
        self.unit = "of matmul peak" if pl_module.device.type == "cpu" else "MFU"
        self.flops_per_token = train_flops_per_token(cfg.model, cfg.data.seq_len)
        columns = (
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self.bar = Bar(*columns, TimeRemainingColumn())
        self.bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
        self.bar.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, idx: int
    ) -> None:
        if self.since is None:
            self._restart_clock(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, idx: int
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        assert self.since is not None
        self.tokens += batch[:, 1:].numel() * trainer.world_size
        step, steps = trainer.global_step, trainer.global_step - self.step
        self.bar.update(TaskID(0), completed=step)
        if pl_module.micro_losses or not pl_module.is_logged:
            return
        found = trainer.callback_metrics
        loss, bpb = (float(found[f"train/{name}"]) for name in ("text_loss", "bpb"))
        text = f"loss {loss:.3f}  {bpb:.3f} bits/byte"
        if step == 1 < min(pl_module.cfg.trainer.log_every_n_steps, trainer.max_steps):
            self._say(trainer, text)  # a first step is no measure of speed
            return
        seconds = time.perf_counter() - self.since
        speed = self.tokens / seconds
        mfu = self.peak.share(speed * self.flops_per_token / trainer.world_size)
        logged = {"train/tokens_per_second": speed} | ({} if mfu is None else {"train/mfu": mfu})
        pl_module.log_dict(logged)
        left = (trainer.max_steps - step) * seconds / steps / 60
        text += f"  {speed:,.0f} tokens/s" + ("" if mfu is None else f"  {mfu:.0%} {self.unit}")
        self._say(trainer, text, f"  {left:.1f} min left")
        self._restart_clock(trainer)

    def _say(self, trainer: L.Trainer, text: str, left: str = "") -> None:
        self.text = text
        self.bar.update(TaskID(0), description=text)
        if self.bar.disable:
            print(f"step {trainer.global_step}/{trainer.max_steps}  {text}{left}", flush=True)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, idx: int, _: int = 0
    ) -> None:
        (n_batches,) = trainer.num_val_batches
        text = f"validating {idx + 1}/{n_batches}"
        self.bar.update(TaskID(0), description=text, refresh=idx == 0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = ("val/loss", "val/bpb", "val/exact_match")
        values = {n: trainer.callback_metrics[n] for n in names if n in trainer.callback_metrics}
        text = "  ".join(f"{name} {float(value):.4f}" for name, value in values.items())
        print(f"step {trainer.global_step}  {text}", flush=True)
        self.bar.update(TaskID(0), description=self.text)
        self.since = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()  # Lightning leaves teardown out: the cursor would stay hidden

    def _restart_clock(self, trainer: L.Trainer) -> None:
        self.tokens, self.step, self.since = 0, trainer.global_step, time.perf_counter()


class Samples(Shown):
    """Continues a few prompts after every validation into `samples.md`; prints the first too.

    Without `prompts`, the first words of validation documents.
    """

    def __init__(self, prompts: Sequence[str] | None, max_new_tokens: int) -> None:
        if isinstance(prompts, str):
            raise ValueError(f"prompts={prompts} must be a list of texts")
        self.prompts = None if prompts is None else list(prompts)
        self.max_new_tokens = max_new_tokens

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises UserError for a prompt that does not fit, before the first step."""
        assert isinstance(pl_module, LanguageModel)
        if self.prompts is None:
            n = min(START, pl_module.cfg.model.max_seq_len // 2)
            tokens = trainer.val_dataloaders.tokens  # type: ignore[union-attr] # an `EvalLoader`
            self.prompts = first_words(tokens, pl_module.tokenizer, n_tokens=n)
        for prompt in self.prompts:
            try:
                self._completion(pl_module, prompt, seed=0)
            except UserError as error:
                raise UserError(f"callbacks.samples.prompts: {error}, from data.seq_len") from None

    def show(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        samples = []  # on all ranks: the model may be sharded
        for seed, prompt in enumerate(self.prompts or ()):
            completion = self._completion(pl_module, prompt, seed=seed)
            text = completion.prompts[0] + "".join(piece for _, piece in completion)
            title = f"sample: the model continues {completion.prompts[0]!r}"
            samples.append(f"{title}\n\n{textwrap.indent(text.rstrip(), '    ')}\n")
        if samples:
            print(samples[0], flush=True)
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "samples.md"
            write_entry(path, trainer.global_step, "\n".join((*samples, "")))
        publish(trainer, "samples", "\n".join(samples))

    def _completion(self, pl_module: L.LightningModule, prompt: str, *, seed: int) -> Completion:
        assert isinstance(pl_module, LanguageModel)
        return Completion(
            pl_module.model,
            pl_module.tokenizer,
            [prompt],
            max_new_tokens=self.max_new_tokens,
            sampling=Sampling(temperature=0.6, top_k=50),
            seed=seed,
        )


def write_entry(path: Path, step: int, text: str) -> None:
    """Add the entry of a step to a Markdown file, in place of it and of later ones there are."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    for heading in re.finditer(r"^## step (\d+)$", before, re.MULTILINE):
        if int(heading[1]) >= step:
            before = before[: heading.start()]
            break
    write_text(path, f"{before}## step {step}\n\n{text}")


def first_words(ids: Stream, tokenizer: Tokenizer, *, n_tokens: int) -> list[str]:
    """The first words of the first documents of a stream, at most `n_tokens` of each."""
    begun = ids[:SEARCHED]
    documents = np.split(begun, np.flatnonzero(begun == tokenizer.end_of_text))
    starts = [document[: n_tokens + 1].tolist() for document in documents if len(document)]
    texts = [tokenizer.decode(start).rstrip("\ufffd") for start in starts[:N_PROMPTS]]
    return [match[0] if (match := FIRST_WORDS.match(text)) else text for text in texts]


class LossSpikes(L.Callback):
    """Prints a step whose loss is `threshold` standard deviations above the mean of `window` steps.

    Losses are means over the global batch; those that are not finite do not count.
    """

    def __init__(self, window: int, threshold: float) -> None:
        self.threshold = threshold
        self.losses: deque[float] = deque(maxlen=window)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        loss = pl_module.loss
        if loss is None:
            return
        if len(self.losses) == self.losses.maxlen:
            mean, deviation = fmean(self.losses), stdev(self.losses)
            if loss > mean + self.threshold * deviation:
                trainer.print(
                    f"step {trainer.global_step}: loss {loss:.3f} is a spike, the last "
                    f"{len(self.losses)} were {mean:.3f} +- {deviation:.3f}"
                )
        self.losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        losses = state_dict["losses"]
        require_alike(losses, [0.0] * len(losses), "callbacks.LossSpikes")
        self.losses = deque(losses, self.losses.maxlen)
