"""Other ecosystems' layouts; the only place where Hugging Face's names appear."""

from mla_lm.interop.hugging_face import config_dict, to_hugging_face

__all__ = ["config_dict", "to_hugging_face"]
