"""`python two_ranks.py OUT.json`: what one of two ranks counts, for test_bookkeeping."""

import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.training.faults import of_this_rank_only, poisons, train_poisoned
from tests.training.small import CASES, trained

RANK = int(os.environ["RANK"])


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {str(case): trained(case, rank=RANK, n_ranks=2) for case in CASES}
    found |= {str(p): train_poisoned(p, rank=RANK, n_ranks=2) for p in poisons("micro-batch")}
    with pytest.MonkeyPatch.context() as patch:
        of_this_rank_only(patch)
        found["fault"] = trained(CASES[1], rank=RANK, n_ranks=2)
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
