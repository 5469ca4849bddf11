"""Prepare a corpus without training: `python data/prepare.py [data=text data.path=...]`."""

import sys

from mla_lm import cli
from mla_lm.data import prepare


def main() -> None:
    """Compose the `data` group as `train.py` would and print the manifest."""
    manifest = prepare(cli.load_config(sys.argv[1:]).data).manifest
    for key, value in manifest.items():
        print(f"{key:14} {value}")


if __name__ == "__main__":
    cli.guard(main)
