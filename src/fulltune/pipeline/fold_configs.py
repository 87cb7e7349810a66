"""Configs of the folds of cross-validation, and the check of their rows; torch is not imported."""

from __future__ import annotations

from dataclasses import replace

from fulltune.config import Config
from fulltune.errors import ConfigError, DataError
from fulltune.pipeline.job import check_rows, checked_task_and_method
from fulltune.runtime import distributed


def check_folds(config: Config) -> None:
    """Check the rows of every fold, before any is trained.

    Raises:
        ConfigError: Several processes are running.
        DataError: The rows of a fold cannot be used.
    """
    if distributed.launched() > 1:
        raise ConfigError(
            "cross-validation by several processes", expected="one process", fix="run it by one", field="data.folds"
        )
    task, _ = checked_task_and_method(config)
    for fold in numbers(config):
        try:
            check_rows(of_fold(config, fold), task)
        except DataError as error:
            if any(problem.field == "data.folds" for problem in error.problems):
                raise
            named = [replace(problem, found=f"fold {fold}: {problem.found}") for problem in error.problems]
            raise DataError(named) from error


def of_fold(config: Config, fold: int) -> Config:
    """Return the config of a fold. What is forgotten is measured on the final model, unless it stops training."""
    guards = config.guards
    if guards.forgetting is not None and guards.forgetting.action != "stop":
        guards = guards.model_copy(update={"forgetting": None})
    data = config.data.model_copy(update={"fold": fold})
    return config.model_copy(update={"data": data, "guards": guards})


def numbers(config: Config) -> range:
    """Return the numbers of the folds, from 1."""
    return range(1, (config.data.folds or 0) + 1)
