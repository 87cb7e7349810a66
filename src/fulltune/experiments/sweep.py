"""``fulltune sweep``: search over any keys of a config, and estimate the gain.

    found = fulltune.sweep("config.yaml", over=["train.learning_rate=1e-5..1e-3:log", "train.epochs=2,4,8"], trials=12)
    print(found.headline)

Trials are judged on validation rows, never on the evaluation set, and their models are thrown away. The result is a
config to run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fulltune.config import (
    Config,
    ConfigSource,
    EvaluationConfig,
    dump_config,
    load_config,
    refuse_folds,
    with_validation_rows,
)
from fulltune.errors import ConfigError, FulltuneError, Problem
from fulltune.experiments.search import Choice, Range, Space, answers_path, best, search, setting_text, with_settings
from fulltune.metrics.accumulate import Rows, rows_of
from fulltune.metrics.selection import gain_of_choosing
from fulltune.pipeline import job
from fulltune.records.methods import Tried, Value
from fulltune.records.sweep import Selection, Sweep
from fulltune.runtime.config_file import read_value
from fulltune.runtime.files import atomic_text
from fulltune.runtime.progress import Progress, progress_of
from fulltune.store.jobs import job_folder

if TYPE_CHECKING:
    from fulltune.experiments.trials import Objective

#: Keys that decide how a trial is judged, or what happens alongside it: a search over them compares nothing.
_FIXED = (
    *(
        "task",
        "data.valid",
        "data.eval",
        "data.eval_limit",
        "data.folds",
        "data.fold",
        "data.seed",
        "evaluation",
        "baselines",
        "checkpoints",
    ),
    *("guards.overfitting", "guards.forgetting", "train.evaluations", "train.seed", "train.seeds"),
)

_RANGE = re.compile(r"^(?P<low>[^,]+?)\.\.(?P<high>[^,:]+)(?::(?P<scale>log))?$")

_WAYS = "field=LOW..HIGH, field=LOW..HIGH:log, or field=A,B,C"


def sweep(
    config: ConfigSource | None = None,
    *,
    over: Sequence[str],
    trials: int = 20,
    seed: int = 17,
    prune: bool = False,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | bool | None = None,
    **options: Any,
) -> Sweep:
    """Search over keys of a config; the same call resumes a killed search, or extends one to more trials.

    Args:
        config, overrides, progress, options: As in :func:`fulltune.run`.
        over: ``field=LOW..HIGH``, ``field=LOW..HIGH:log`` or ``field=A,B,C``, one per key. ``data.valid`` judges, or a
            tenth of train that is held out.
        trials: Total number of trials, fewer if a space of choices has fewer points. The original config comes first.
        seed: Seed of the search.
        prune: End trials early that fall behind the median of those before them.
        out: The runs folder, where the folder ``sweep-…`` is created.

    Raises:
        ConfigError: A key or a value is not valid; all problems at once, before the first trial.
        FulltuneError: Anything that would stop the run before its first step.
    """
    config, progress = with_validation_rows(load_config(config, overrides, options=options)), progress_of(progress)
    refuse_folds(config, "a search")
    space = parse_space(config, over)
    if trials < 1:
        raise ConfigError(f"{trials} trials", expected="at least 1", where="--trials")
    prepared = job.prepare_job(config, out)  # mistakes in the rows are reported before torch is imported
    from fulltune.experiments.trials import Bench

    bench = Bench(out, progress, (config, prepared))
    goal, rows = bench.judge(config)
    folder = job_folder(out, "sweep", config, {"over": sorted(over), "seed": seed, "prune": prune})
    default = _default(prepared.config, space)
    first = [] if default is None else [default]
    tried = search(config, space, folder, bench, trials=trials, seed=seed, prune=prune, first=first)
    result = _summary(config, goal, dict(part.split("=", 1) for part in over), tried, default is not None, rows, folder)
    atomic_text(folder / "sweep.json", result.to_json())
    return result


def parse_space(config: Config, over: Sequence[str]) -> Space:
    """Return the keys and values to search over.

    Raises:
        ConfigError: All problems at once.
    """
    space: dict[str, Range | Choice] = {}
    problems = [] if over else [Problem("nothing to search over", _WAYS, where="--over")]
    for text in over:
        field, _, values = (part.strip() for part in text.partition("="))
        try:
            _check_field(field, text, space)
            space[field] = _values(config, field, values)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return space


def _check_field(field: str, text: str, known: Mapping[str, Any]) -> None:
    if not field or "=" not in text:
        raise ConfigError(f"{text!r}", expected=_WAYS, where="--over")
    fixed = next((name for name in _FIXED if field == name or field.startswith(f"{name}.")), None)
    if fixed:
        fix = "search over another key; several seeds separate luck from skill; a seed is not a setting to choose"
        if fixed != "train.seed":
            fix = "search over another key: this one says how a trial is judged, or nothing about its training"
        raise ConfigError("not a key to search over", fix=fix, where="--over", field=field)
    if field in known:
        raise ConfigError("named twice", fix="give all its values at once", where="--over", field=field)


def _values(config: Config, field: str, text: str) -> Range | Choice:
    """Return the values of a key; each is one that the config takes."""
    match = _RANGE.match(text)
    if match:
        return _range(config, field, match)
    choice = Choice(tuple(dict.fromkeys(_read(value) for value in text.split(","))))
    _require_valid(config, field, choice.values)
    return choice


def _range(config: Config, field: str, match: re.Match[str]) -> Range:
    ends = [_read(match[name]) for name in ("low", "high")]
    numbers = [value for value in ends if isinstance(value, (int, float)) and not isinstance(value, bool)]
    is_log, text = match["scale"] == "log", match[0]
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)) or not numbers[0] < numbers[1]:
        raise ConfigError(f"{text!r}", expected="two numbers, the lower one first", where="--over", field=field)
    if is_log and numbers[0] <= 0:
        raise ConfigError(f"{text!r}", expected="a low end above 0 for :log", where="--over", field=field)
    whole = all(isinstance(number, int) for number in numbers)
    _require_valid(config, field, numbers)
    # Whole bounds of a key that takes fractions, like train.epochs=2..8, mean all numbers in between.
    is_whole = whole and isinstance(_get(with_settings(config, {field: numbers[0]}), field), int)
    low, high = numbers if is_whole else [float(number) for number in numbers]
    return Range(low, high, log=is_log)


def _read(text: str) -> Value:
    """Return a value as YAML reads it; ``1e-5`` is a number too."""
    value = read_value(text.strip(), "--over")
    return value if isinstance(value, (bool, int, float, type(None))) else text.strip()


def _require_valid(config: Config, field: str, values: Sequence[Value]) -> None:
    """Check that every value makes a config that can be run.

    Raises:
        ConfigError: Names each value that does not.
    """
    problems = list[Problem]()
    for value in values:
        try:
            job.checked_task_and_method(with_settings(config, {field: value}))
        except FulltuneError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        # The settings of a trial are checked as if they were given with --set.
        places = {"": "--over", "--set": "--over"}
        raise ConfigError([replace(one, where=places.get(one.where, one.where)) for one in problems])


def _get(config: Config, field: str) -> Any:
    if field.startswith("trainer."):
        return config.trainer.get(field.removeprefix("trainer."))
    return attrgetter(field)(config)


def _default(config: Config, space: Space) -> dict[str, Value] | None:
    """Return the values of the original config if all of them are in the space."""
    values = {field: _get(config, field) for field in space}
    return values if all(space[field].holds(value) for field, value in values.items()) else None


def _summary(
    config: Config,
    goal: Objective,
    space: dict[str, str],
    tried: Sequence[Tried],
    has_default: bool,
    rows: int,
    folder: Path,
) -> Sweep:
    chosen, default = best(tried, goal.direction), tried[0] if has_default and tried else None
    gain = None if chosen is None or default is None else _gain(config.evaluation, goal, tried, chosen, default, folder)
    path = ""
    if chosen is not None:
        text = dump_config(with_settings(config, chosen.settings))
        path = str(atomic_text(folder / "best.yaml", text))
    return Sweep(
        task=config.task,
        model=config.model,
        objective=goal.name,
        direction=goal.direction,
        rows=rows,
        space=space,
        trials=tuple(tried),
        default=0 if default else None,
        best=chosen.number if chosen else None,
        gain=gain,
        confidence=config.evaluation.confidence,
        headline=_headline(goal, chosen, default),
        caution=_caution(goal, tried, chosen, gain, rows, config.evaluation.confidence),
        config=path,
        folder=str(folder),
    )


def _gain(
    settings: EvaluationConfig,
    goal: Objective,
    tried: Sequence[Tried],
    chosen: Tried,
    default: Tried,
    folder: Path,
) -> Selection:
    sign, nan = 1 if goal.direction == "higher" else -1, math.nan
    seen = sign * (chosen.value - default.value)
    whole = [trial.number for trial in tried if trial.state == "whole"]
    if goal.metric is None or default.number not in whole:
        return Selection(seen=seen, value=nan, low=nan, high=nan)
    judged = gain_of_choosing(
        _rows_of([answers_path(folder, number) for number in whole]),
        whole.index(default.number),
        whole.index(chosen.number),
        goal.metric,
        resamples=settings.resamples,
        confidence=settings.confidence,
        min_effect=settings.min_effect,
    )
    return Selection(seen=seen, **judged._asdict())


def _rows_of(paths: Sequence[Path]) -> list[Rows]:
    """Return the validation rows of trials that the metric applies to in all of them."""
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    applies = np.logical_and.reduce([np.array(one["applies"], dtype=bool) for one in kept])
    return [rows_of(np.array(one["rows"], dtype=float), one["groups"], applies) for one in kept]


def _headline(goal: Objective, chosen: Tried | None, default: Tried | None) -> str:
    if chosen is None:
        return "No trial came to its end: lower the learning rates of the space, or look at the reasons."
    settings = ", ".join(f"{field} {setting_text(value)}" for field, value in chosen.settings.items())
    name = goal.metric.label or goal.name if goal.metric else "evaluation loss"
    if default is None:
        return f"Best of the trials: {settings}, with {name} {chosen.value:.4g} on validation rows."
    if chosen.number == default.number:
        return f"Nothing beat the config as it is ({settings}): {name} {chosen.value:.4g} on validation rows."
    before = f"{default.value:.4g}" if math.isfinite(default.value) else "training that broke"
    return f"Best of the trials: {settings}. On validation rows {name} went from {before} to {chosen.value:.4g}."


def _caution(
    goal: Objective, tried: Sequence[Tried], chosen: Tried | None, gain: Selection | None, rows: int, confidence: float
) -> str:
    """Return how much of the gain selection on these rows may have caused."""
    if chosen is None:
        return ""
    base = f"The best of {len(tried)} trials was chosen on {rows} validation rows, so its value there flatters it."
    if gain is None or chosen.number == 0:
        return f"{base} `fulltune run` on the best config says what it is worth on the evaluation rows."
    if math.isnan(gain.value):
        why = "with a loss as the objective" if goal.metric is None else "for the default did not come to its end"
        return (
            f"{base} How much of the gain is luck cannot be estimated {why}: run both configs, and compare them with "
            "`fulltune compare`."
        )
    points = 100 if goal.metric is not None and goal.metric.percent else 1
    unit = " points" if points == 100 else ""
    measured = (
        f"{points * gain.value:.3g}{unit} ({points * gain.low:.3g} to {points * gain.high:.3g} at {confidence:.0%})"
    )
    caution = (
        f"{base} On rows that did not choose, the gain over the default is {measured}, not {points * gain.seen:.3g}"
    )
    if gain.verdict == "improved":
        return f"{caution}{unit}."
    if gain.low > 0:
        return f"{caution}{unit}: less than counts (evaluation.min_effect)."
    return f"{caution}{unit}: it could be chance. More validation rows narrow the interval."
