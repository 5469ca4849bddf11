"""Stands for what is not on main yet; deleted with the merge."""

from mla_lm.config.compose import validate


def with_values(cfg, changes):
    values = cfg.model_dump()
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = values
        for section in sections:
            node = node[section]
        node[last] = value
    return validate(type(cfg), values)
