"""Read the settings of ``guards.forgetting``: sets of rows that the config names in addition to the built-in probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulltune.config import Config, load_config
from fulltune.data.probe import BUILTIN, LANGUAGES
from fulltune.errors import ConfigError, Problem
from fulltune.runtime import plugins

#: Task name of a set of minimal pairs, which is only scored.
PAIRS = "minimal-pairs"


def check_sets(config: Config) -> None:
    """Check the settings of ``guards.forgetting`` before anything is loaded.

    Raises:
        ConfigError: A set has no data or an unknown task, a language to keep is unknown, or the action is ``stop``
            without evaluations during training. All problems are reported.
    """
    settings = config.guards.forgetting
    problems = list[Problem]()
    unknown = sorted(set(settings.keep or ()) - set(LANGUAGES)) if settings and settings.probe == BUILTIN else []
    if unknown:
        problems.append(
            Problem(
                f"there is no built-in general text in {', '.join(map(repr, unknown))}",
                " or ".join(LANGUAGES),
                "remove it, or name a file with text of that language in guards.forgetting.probe",
                field="guards.forgetting.keep",
            )
        )
    if settings and settings.action == "stop" and not config.train.evaluations:
        problems.append(
            Problem(
                "stop, while train.evaluations is 0",
                "evaluations at which the probe is scored",
                "increase train.evaluations, or choose warn or reject",
                field="guards.forgetting.action",
            )
        )
    for name, options in settings.sets.items() if settings else ():
        try:
            job = config_of_set(options, config)
            if job.task != PAIRS:
                plugins.load("task", job.task)
        except ConfigError as error:
            problems += [_with_set_name(problem, name) for problem in error.problems]
    if problems:
        raise ConfigError(problems)


def config_of_set(options: Mapping[str, Any], config: Config) -> Config:
    """Return the config of a set: its own task and data, with the run's model and evaluation."""
    # Chat templates of a set use the date of the run.
    data = {"chat_date": config.data.chat_date, **(options.get("data") or {})} if options.get("data") else {}
    if "train" not in data and isinstance(data.get("eval"), (str, list, tuple)):
        data["train"] = data["eval"]
    defaults = {"model": config.model, "evaluation": config.evaluation.model_dump()}
    job = load_config(defaults | dict(options) | ({"data": data} if data else {}))
    limit = config.guards.forgetting.limit if config.guards.forgetting else None
    limits = [value for value in (job.data.limit, job.data.eval_limit, limit) if value is not None]
    return job.model_copy(update={"data": job.data.model_copy(update={"eval_limit": min(limits)})})


def _with_set_name(problem: Problem, name: str) -> Problem:
    """Return a problem of a set's config with the set's key as its field."""
    field = f"guards.forgetting.sets.{name}" + (f".{problem.field}" if problem.field else "")
    return Problem(problem.found, problem.expected, problem.fix, problem.where, field)
