"""Prepare a corpus without training: `python data/prepare.py [data=text data.path=...]`.

The same command resumes an interrupted preparation.
"""

import sys

from mla_lm import load_config
from mla_lm.data import prepare
from mla_lm.errors import guard


def main() -> None:
    """Compose the `data` group as `train.py` would and print what was prepared."""
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    data = prepare(load_config(sys.argv[1:]).data)
    for split in ("train", "val"):
        counts = data.manifest[split]
        print(
            f"{split:5}  {counts['documents']:,} documents  {counts['bytes']:,} bytes  "
            f"{counts['tokens']:,} tokens"
        )
    for key in ("vocab_size", "bytes_per_token", "empty_documents", "corpus"):
        print(f"{key.replace('_', ' ')}: {data.manifest[key]}")
    print(*data.warnings(), f"in {data.train.paths[0].parent}", sep="\n")


if __name__ == "__main__":
    guard(main)
