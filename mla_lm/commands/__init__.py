"""The verbs of `python -m mla_lm`: thin, one file each, `run(arguments)`."""
