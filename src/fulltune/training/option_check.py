"""Test options before a run that transformers accepts at first and rejects during training.

A model of a few hundred parameters is trained for one step and evaluated with the options of the config. This creates
the optimizer, the schedule, the data loaders and the accelerator as the run will. It takes a fraction of a second, and
is skipped unless ``trainer`` or ``train.optimizer`` is set.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fulltune.config import Config, SpeedConfig, TrainConfig
from fulltune.errors import ConfigError, Problem
from fulltune.runtime import distributed
from fulltune.training.arguments import FIRST_CLASS, REFUSALS, training_arguments
from fulltune.training.defaults import ModelKind, with_defaults

#: Options that are not tested: they compile, use other devices or processes, or open network connections.
_NOT_TRIED = frozenset({"torch_compile", "torch_compile_backend", "torch_compile_mode", "deepspeed", "fsdp"})

#: Options of the test, whatever the config is.
_TRIAL = {"report_to": "none", "save_strategy": "no"}


def check_options(config: Config) -> None:
    """Check every option of ``trainer`` and the optimizer, by name, by type, and by one step of training.

    Raises:
        ConfigError: Options are invalid. All options that fail alone are listed; if none does, the section is.
        MissingDependencyError: The optimizer needs a package that is not installed.
    """
    if not _is_special(config):  # the other fields are valid by their types; transformers need not be imported
        return
    config = with_defaults(config, ModelKind("encoder", parameters=0), sequences=1)  # valid whatever the model is
    problems = list[Problem]()
    try:
        training_arguments(config, Path("unused"), rows=1)
    except ConfigError as error:
        problems += error.problems
    if distributed.launched() == 1 and not _NOT_TRIED & config.trainer.keys():
        named = {".".join(problem.field.split(".")[:2]) for problem in problems}
        problems = [problem for problem in problems if problem.field != "trainer"]
        problems += _refused_in_training(_without(config, named))
    if problems:
        raise ConfigError(problems)


def _without(config: Config, fields: set[str]) -> Config:
    """Return the config without the options that are known to be invalid."""
    trainer = {name: value for name, value in config.trainer.items() if f"trainer.{name}" not in fields}
    wrong = "train.optimizer" in fields
    train = config.train.model_copy(update={"optimizer": TrainConfig().optimizer}) if wrong else config.train
    return config.model_copy(update={"trainer": trainer, "train": train})


def _refused_in_training(config: Config) -> list[Problem]:
    if not config.trainer and config.train.optimizer == TrainConfig().optimizer:
        return []
    error = _refusal(config)
    if error is None:
        return []
    problems = []
    for field, single in _one_by_one(config):
        cause = _refusal(single)
        if cause is not None:
            problems.append(_problem(field, cause))
    return problems or [_problem("trainer", error)]


def _is_special(config: Config) -> bool:
    """Return True if the config sets options that only transformers can judge."""
    is_plain = config.train.optimizer == TrainConfig().optimizer and config.speed.precision == SpeedConfig().precision
    return bool(config.trainer) or not is_plain


def _one_by_one(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield the config with a single special option, for each of them."""
    default = TrainConfig().optimizer
    plain = config.model_copy(update={"train": config.train.model_copy(update={"optimizer": default})})
    yield "train.optimizer", config.model_copy(update={"trainer": {}})
    for name, value in config.trainer.items():
        yield f"trainer.{name}", plain.model_copy(update={"trainer": {name: value}})


def _problem(field: str, error: Exception) -> Problem:
    detail = str(error).strip().partition("\n")[0][:200].rstrip(".")
    return Problem(
        f"transformers does not accept this ({type(error).__name__}: {detail})",
        fix="see the documentation of transformers.TrainingArguments",
        field=field,
    )


def _refusal(config: Config) -> Exception | None:
    """Return the error of one step of training with these options, or None."""
    from fulltune.models.bundle import quiet
    from fulltune.training.checkpoints.random_state import randomness_kept

    with randomness_kept(), quiet(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            _try_out(config, Path(folder))
        except ConfigError as error:
            return error.__cause__ if isinstance(error.__cause__, REFUSALS) else error
        except REFUSALS as error:
            return error
    return None


def _try_out(config: Config, folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer

    own = {name: value for name, value in config.trainer.items() if name not in FIRST_CLASS}
    own |= {name: 1 for name in ("dataloader_num_workers",) if own.get(name, 0) > 1}  # any number of them works as one
    single = config.train.model_copy(update={"batch_size": 1, "accumulation": 1, "max_steps": 1})
    evaluation = config.evaluation.model_copy(update={"batch_size": 1})
    trial = config.model_copy(update={"trainer": own | _TRIAL, "train": single, "evaluation": evaluation})
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
    arguments = training_arguments(trial, folder, len(rows))
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        trainer: Any = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        trainer.evaluate()
