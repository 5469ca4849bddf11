"""Measurements against peers, each a ratio taken in one run; README.md has what was found."""
