"""What Lightning's loops must find in a checkpoint to go on as if nothing had happened.

Lightning 2.6 resumes exactly behind a batch and behind a validation. At the end of an epoch it
would start the next one without its hooks and miscount, and of a validation that was cut short it
would skip what had been done; both are stored here as places that it knows.
"""

from typing import Any

BATCHES, VALIDATION = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"
SCHEDULES = "epoch_loop.scheduler_progress"
STEPS = "epoch_loop.automatic_optimization.optim_progress"


def settle(loop: dict[str, Any]) -> None:
    """Change the state of the fit loop, where it stands at one of these places, in place."""
    validated = loop[VALIDATION]["current"]
    if validated["completed"] < validated["ready"]:
        _begin_validation(loop[VALIDATION])
    epochs = loop["epoch_progress"]["total"]
    if epochs["completed"] < epochs["processed"]:
        _begin_epoch(loop)


def recount(loop: dict[str, Any], *, before: int, after: int) -> None:
    """Between steps, go on with another number of micro-batches a step, in place."""
    for counts in (loop[BATCHES]["total"], loop[BATCHES]["current"]):
        further = counts["ready"] * after // before - counts["ready"]
        counts.update({name: n + further for name, n in counts.items()})


def _begin_validation(progress: dict[str, Any]) -> None:
    """In the first batch: Lightning runs the validation, whose loader starts at its beginning."""
    before = progress["total"]["completed"] - progress["current"]["completed"]
    for of, n in (("total", before), ("current", 0)):
        progress[of] |= {"ready": n + 1, "started": n + 1, "processed": n, "completed": n}
    progress["is_last_batch"] = False


def _begin_epoch(loop: dict[str, Any]) -> None:
    """Between two epochs, all counts of the one that has ended taken back to zero."""
    for of in ("total", "current"):
        epochs = loop["epoch_progress"][of]
        epochs["completed"] = epochs["processed"]
    loop[BATCHES]["is_last_batch"] = False
    steps = loop[STEPS]["optimizer"]
    ended = [loop[key]["current"] for key in (BATCHES, SCHEDULES)]
    ended += [steps["step"]["current"], steps["zero_grad"]["current"], loop[VALIDATION]["total"]]
    for counts in ended:
        counts.update(dict.fromkeys(counts, 0))
