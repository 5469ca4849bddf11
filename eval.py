"""Evaluate a checkpoint: `python eval.py ckpt=PATH [key=value]`; `--help` shows examples."""

from mla_lm import cli
from mla_lm.config import EvalConfig


def evaluate(cfg: EvalConfig, overrides: list[str]) -> None:
    """Write `metrics.json` into the run folder and print the same as a table.

    With `context` the file's name ends in it: the metrics are others than those of the training.
    """
    import json
    from itertools import islice

    import torch
    from rich.progress import track

    from mla_lm.checkpoint import load_checkpoint, locate, require_corpus, run_folder
    from mla_lm.data import Annotator, EvalLoader, prepare
    from mla_lm.evaluation import evaluate, metrics_table
    from mla_lm.evaluation.expert_maps import draw_by_kind
    from mla_lm.evaluation.token_kinds import CODE, PROSE, token_kinds
    from mla_lm.machine import accelerator_type, autocast, keep_freed_memory, resolve_precision

    keep_freed_memory()
    path = locate(cfg.ckpt)
    model, run, tokenizer = load_checkpoint(path, context=cfg.context)
    seq_len = cfg.context or run.data.seq_len
    data = prepare(run.data, tokenizer=tokenizer)
    require_corpus(path, data.manifest)
    batches = EvalLoader(data.val, seq_len=seq_len, batch_size=cfg.batch_size)
    device = accelerator_type()
    precision = resolve_precision(cfg.precision, device)
    n_batches = min(len(batches), cfg.limit or len(batches))
    layers = list(model.routers())
    code = run.data.kind == "stdlib"
    kinds = None
    if layers:
        seen = data.val[0 : n_batches * cfg.batch_size * seq_len + 1]
        of_token = token_kinds(seen, tokenizer, code=code)
        kinds = EvalLoader(of_token, seq_len=seq_len, batch_size=cfg.batch_size)
    with autocast(precision, device):
        metrics, load, load_by_kind = evaluate(
            model.to(device),
            track(islice(batches, n_batches), "evaluating", total=n_batches, transient=True),
            torch.from_numpy(tokenizer.byte_lengths).to(device),
            Annotator(run.data, tokenizer),
            kinds=kinds,
            n_kinds=len(CODE if code else PROSE),
        )

    print(f"{path}  {precision}  {n_batches} of {len(batches)} batches of {seq_len}")
    metrics_table(metrics, load, layers)
    if load_by_kind is not None:
        picture = run_folder(path) / "expert_kinds.png"
        draw_by_kind(picture, load_by_kind, CODE if code else PROSE, layers)
        print(f"which experts take which tokens: {picture}")
    suffix = f"-context-{cfg.context}" if cfg.context else ""
    target = run_folder(path) / f"metrics{suffix}.json"
    conditions = {
        "ckpt": path.name,
        "precision": precision,
        "limit": cfg.limit,
        "seq_len": seq_len,
    }
    loads = {} if load is None else {"moe/load": load.tolist()}
    target.write_text(json.dumps({**conditions, **metrics, **loads}, indent=2) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    cli.main(evaluate, name="eval", kind=EvalConfig)
