"""Measurements against a peer or a budget in the same run; `LOG.md` keeps the findings."""
