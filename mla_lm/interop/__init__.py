"""Folders of Hugging Face in both directions; the only place where its names appear."""

from mla_lm.interop.config_to_hf import config_dict
from mla_lm.interop.weights import to_hugging_face, write_shards

__all__ = ["config_dict", "to_hugging_face", "write_shards"]
