"""Files forged at random, with good digests: each ends well, or in one line with status 2.

A command has 20 s of a core and 2 GB beyond what its imports take, and writes only where it is
told to. 12 cases by default; `make test-all` tries all 2,040.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import CONFIG_FILE, RECORD, WEIGHTS
from tests.forgeries import Changes, mutations
from tests.reliability import child
from tests.reliability.conftest import Reference
from tests.reliability.runs import CONTEXT, STEPS, checkpoint, differences, short, state, wait
from tests.reliability.test_forged import signed

PIECES, PER_PIECE = 170, 12
PROMPT, OUT = ("prompt=ab", "max_new_tokens=4"), "out=out"
DRAWS = [word for word in short(Path()) if word.startswith(("callbacks.", "+callbacks."))]
VERBS = (("generate", *PROMPT), ("generate", "context=64", *PROMPT), ("export", OUT))


def of_tensors(value: Any) -> Changes:
    """What else a tensor of a checkpoint may become."""
    if isinstance(value, Tensor):
        yield "NaN", torch.full(value.shape, torch.nan)
        yield "infinite", torch.full(value.shape, torch.inf)
        yield "negative", -1 - value.float().abs()
        yield "huge", torch.full(value.shape, 1e38)
        yield "bytes", torch.zeros(value.shape, dtype=torch.int8)
        yield "float64", value.double()
        yield "one dimension more", value[None]
        yield "one element more", torch.cat([value.flatten(), value.new_zeros(1)])
        yield "empty", value.flatten()[:0]
        yield "complex", value.to(torch.complex64)


def forgeries(good: Path, rng: Random) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Endlessly: what is forged, and how to write the file; each part of a checkpoint in turn."""
    content = checkpoint_file.read(good)
    own = content[RECORD]
    tokenizer = json.loads(own["tokenizer"].numpy().tobytes())
    raw = good.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    of_parts = {
        "content": mutations(content, rng, leaf=of_tensors),
        "record": mutations(own, rng, leaf=of_tensors),
        "config": mutations(own["config"], rng),
        "model": mutations(own["config"]["model"], rng),
        "tokenizer": mutations(tokenizer, rng),
        "loops": mutations(content["loops"]["fit_loop"], rng),
        "callbacks": mutations(content["callbacks"], rng, leaf=of_tensors),
        "optimizer": mutations(content["optimizer_states"], rng, leaf=of_tensors),
        "weights": mutations(content[WEIGHTS], rng, leaf=of_tensors),
        "header": mutations(header, rng),
    }

    def within(part: str, changed: Any) -> dict[str, Any]:
        if part == "tokenizer":
            text = torch.frombuffer(bytearray(json.dumps(changed).encode()), dtype=torch.uint8)
            return {**content, RECORD: {**own, "tokenizer": text}}
        if part == "model":
            return {**content, RECORD: {**own, "config": {**own["config"], "model": changed}}}
        return {
            "content": changed,
            "record": {**content, RECORD: changed},
            "config": {**content, RECORD: {**own, "config": changed}},
            "loops": {**content, "loops": {**content["loops"], "fit_loop": changed}},
            "callbacks": {**content, "callbacks": changed},
            "optimizer": {**content, "optimizer_states": changed},
            "weights": {**content, WEIGHTS: changed},
        }[part]

    def write(part: str, changed: Any, path: Path) -> None:
        if part == "header":
            text = json.dumps(changed, separators=(",", ":")).encode()
            path.write_bytes(signed(len(text).to_bytes(8, "little") + text + raw[end:]))
        else:
            checkpoint_file.write(path, within(part, changed))

    while True:
        for part, changes in of_parts.items():
            what, changed = next(changes)
            yield f"{part}: {what}", partial(write, part, changed)


def how_it_ended(words: Sequence[str], place: Path, corpus: Path) -> tuple[int, str]:
    """Status and what was printed; -1 where the promise is broken."""
    process = CONTEXT.Process(target=child.attempt, args=(words, place, corpus))
    process.start()
    status, said = wait(process), (place / "log").read_text()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    kept = "Traceback" not in said and (status, len(errors)) in ((0, 0), (2, 1))
    refused_before = status == 2 and "\nstep " not in said
    if refused_before and ((place / "run" / CONFIG_FILE).exists() or (place / "out").exists()):
        kept = False
    return (status if kept else -1), said


def cases(reference: Reference, corpus: Path, place: Path, rng: Random) -> Iterator[str]:
    """How each of a piece's forgeries ended: refused, as before, otherwise, or what is wrong."""
    for number, (what, write) in enumerate(forgeries(checkpoint(reference.folder, 10), rng)):
        folder = place / str(number)
        folder.mkdir()
        path = folder / "x.ckpt"
        try:
            write(path)
        except (TypeError, RecursionError, ValueError):
            continue  # nothing that can be written
        words: Sequence[str] = ("train.py", f"resume={path}", "run_dir=run", "logger=csv")
        words = (*words, f"trainer.max_steps={STEPS}", *DRAWS)
        if rng.random() < 0.4:
            verb, *more = rng.choice(VERBS)
            words = (verb, f"ckpt={path}", *more)
        status, said = how_it_ended(words, folder, corpus)
        if status < 0:
            yield f"{what} ({words[0]}): {said[-2000:]}"
        elif status == 2:
            yield "refused"
        elif words[0] == "train.py":
            end = state(checkpoint(folder / "run", STEPS))
            if differing := differences(end[WEIGHTS], reference.end[WEIGHTS]):
                print(f"otherwise: {what}")
            yield "otherwise" if differing else "as before"
        else:
            yield "answered"


@pytest.mark.parametrize(
    "piece", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, PIECES))]
)
def test_a_forged_checkpoint_ends_well_or_in_one_line(
    reference: Reference, corpus: Path, tmp_path: Path, piece: int
) -> None:
    ends = [*islice(cases(reference, corpus, tmp_path, Random(piece)), PER_PIECE)]
    counted = Counter(ends)
    known = ("refused", "as before", "otherwise", "answered")
    wrong = [end for end in counted if end not in known]
    print(json.dumps({name: counted[name] for name in known}))
    assert wrong == []
