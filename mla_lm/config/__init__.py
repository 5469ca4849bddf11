"""The typed configuration of a run: the table of contents of everything that can be set.

Hydra composes YAML into a plain dict, `RunConfig` validates it once, and everything downstream
takes the typed, frozen object. Defaults live in `configs/` only. Knows neither torch nor Hydra.
"""

from pathlib import Path

from mla_lm.config.data import (
    DataConfig,
    FilesConfig,
    HubConfig,
    JsonlConfig,
    ParquetConfig,
    StdlibConfig,
    SyntheticConfig,
    TextConfig,
    TokenizerConfig,
)
from mla_lm.config.model import (
    GroupedAttentionConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    PlainRopeConfig,
    RopeConfig,
    YarnConfig,
)
from mla_lm.config.run import (
    BalanceConfig,
    CheckpointConfig,
    Checkpointing,
    EvalConfig,
    LossConfig,
    OptimConfig,
    Precision,
    QuestionFile,
    RunConfig,
    TrainerConfig,
)

PACKAGED = Path(__file__).resolve().parents[1] / "configs"  # what an installed package has
CONFIGS = PACKAGED if PACKAGED.is_dir() else PACKAGED.parents[1] / "configs"  # in a clone
