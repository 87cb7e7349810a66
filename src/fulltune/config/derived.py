"""Derive the config of a single training or of a search from a config."""

from __future__ import annotations

from fulltune.config.schema import Config
from fulltune.errors import ConfigError


def refuse_folds(config: Config, what: str) -> None:
    """Check that a config names rows that decide, for what cannot cross-validate.

    Raises:
        ConfigError: It has ``data.folds``.
    """
    if config.data.is_crossed:
        raise ConfigError(
            f"cross-validation ({config.data.folds} folds) in {what}",
            expected="rows that decide",
            fix="remove data.folds (or set it to null) and name them in data.eval",
            field="data.folds",
        )


def with_one_seed(config: Config) -> Config:
    """Return the config of one of the trainings that ``train.seeds`` asks for."""
    return config.model_copy(update={"train": config.train.model_copy(update={"seeds": 1})})


def with_validation_rows(config: Config) -> Config:
    """Return the config for a search, which needs validation rows and the same split for every ``train.seed``.

    Without ``data.valid``, a tenth of train is held out.
    """
    data = {
        "valid": 0.1 if config.data.valid is None else config.data.valid,
        "seed": config.train.seed if config.data.seed is None else config.data.seed,
    }
    return config.model_copy(update={"data": config.data.model_copy(update=data)})
