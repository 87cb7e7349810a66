"""The config of a job: its sections, and how it is read.

Names are the same in YAML, JSON and Python keyword arguments. An unknown key is an error that names the closest known
key. All problems are reported at once.
"""

from fulltune.config.derived import refuse_folds, with_one_seed, with_validation_rows
from fulltune.config.loading import ConfigSource, dump_config, key_named, load_config
from fulltune.config.schema import (
    MOST_SEEDS,
    AdapterConfig,
    BaselineConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DataSource,
    DivergenceConfig,
    EvaluationConfig,
    ForgettingConfig,
    GuardsConfig,
    OverfittingConfig,
    PromoteConfig,
    RegularizeConfig,
    SamplingConfig,
    SpeedConfig,
    TrainConfig,
)

__all__ = [
    "MOST_SEEDS",
    "AdapterConfig",
    "BaselineConfig",
    "CheckpointConfig",
    "Config",
    "ConfigSource",
    "DataConfig",
    "DataSource",
    "DivergenceConfig",
    "EvaluationConfig",
    "ForgettingConfig",
    "GuardsConfig",
    "OverfittingConfig",
    "PromoteConfig",
    "RegularizeConfig",
    "SamplingConfig",
    "SpeedConfig",
    "TrainConfig",
    "dump_config",
    "key_named",
    "load_config",
    "refuse_folds",
    "with_one_seed",
    "with_validation_rows",
]
