"""Which text a checkpoint may have read: the one that it lists, or one that the user names.

A record comes from anyone, so its paths are only claims. The folder of prepared corpora and how
they are verified are the user's alone.
"""

import os
from collections.abc import Mapping
from typing import Any

from mla_lm.checkpoint.record import Record
from mla_lm.config import DataConfig
from mla_lm.config.compose import with_values

OF_USER = ("data.cache_dir", "data.verify")


def settle_corpus(
    data: DataConfig, record: Record, asked: Mapping[str, Any]
) -> tuple[DataConfig, dict[str, Any] | None]:
    """`data` with what is the user's, and `prepare`'s `listed`: None where the user names the text.

    `data` holds what `record` says, `asked` the same group of the command line.
    """
    data = with_values(data, {key: asked[key] for key in ("cache_dir", "verify")})
    given = {key: os.path.expanduser(v) for key, v in asked.items() if isinstance(v, str)}
    if data.named.items() <= given.items():
        return data, None
    settings = record.data.get("settings")
    source = settings.get("source") if isinstance(settings, dict) else None
    return data, source if isinstance(source, dict) else {}
