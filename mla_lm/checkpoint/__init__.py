"""Checkpoints: the file, the record of a run, finding, resuming and starting from it."""
