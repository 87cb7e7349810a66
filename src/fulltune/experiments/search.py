"""Search over settings with Optuna; a journal on disk lets a killed search resume.

    space = {"train.learning_rate": Range(1e-5, 1e-3, log=True), "train.epochs": Choice((2, 4, 8))}
    tried = search(config, space, folder, Bench(out, progress), trials=12)

A search that was killed and started again with the same arguments gives the same result: every proposal depends only on
the seed and on the trials that ended before it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.config import Config, load_config
from fulltune.errors import FulltuneError, StoreError
from fulltune.records.methods import Tried, Value
from fulltune.runtime import extras
from fulltune.runtime.files import atomic_text, to_json
from fulltune.store.jobs import locked

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from fulltune.experiments.trials import Bench, Trial

#: Trials before proposals depend on them, and before a trial may be pruned.
STARTUP = 4

#: Name of the study in Optuna's journal.
_STUDY = "search"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole numbers if both are ``int``."""

    low: float
    high: float
    log: bool = False

    def distribution(self) -> Any:
        import optuna

        if isinstance(self.low, int) and isinstance(self.high, int):
            return optuna.distributions.IntDistribution(self.low, self.high, log=self.log)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def distribution(self) -> Any:
        import optuna

        return optuna.distributions.CategoricalDistribution(self.values)

    def holds(self, value: Any) -> bool:
        return value in self.values


Space = Mapping[str, Range | Choice]


def search(
    config: Config,
    space: Space,
    folder: Path,
    bench: Bench,
    *,
    trials: int,
    seed: int = 17,
    prune: bool = False,
    first: Sequence[Mapping[str, Value]] = (),
) -> list[Tried]:
    """Train ``trials`` trials, including those of earlier calls with the same folder.

    A space of choices alone is visited in an order drawn by the seed, each point once. Other spaces are sampled by the
    tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna.

    Args:
        config: The config that trials share.
        space: The keys that trials differ in.
        folder: Folder of the journal (``journal.log``) and, if a metric judges, of the statistics per validation row.
        bench: Trains the trials.
        trials: Most trials.
        seed: Seed of the proposals.
        prune: End a trial that falls behind the median of those before it (Optuna's ``MedianPruner``).
        first: Points of the space to begin with.

    Raises:
        MissingDependencyError: Optuna is not installed.
        StoreError: The journal belongs to another space, or cannot be written.
    """
    from fulltune.experiments.trials import objective

    with _quiet_optuna(), locked(folder):
        study = _study(folder, objective(config).direction, prune)
        _close_what_was_killed(study)
        points = _points(space, first, seed)
        while len(ended := _ended(study)) < (min(trials, len(points)) if _is_finite(space) else trials):
            _propose(study, points, len(ended), seed)
            _try(study, len(ended), space, config, folder, bench)
        return [_tried(number, trial) for number, trial in enumerate(ended)]


def best(tried: Sequence[Tried], direction: str) -> Tried | None:
    """Return the best complete trial; None if there is none."""
    whole = [trial for trial in tried if trial.state == "whole"]
    if not whole:
        return None
    sign = 1 if direction == "higher" else -1
    return max(whole, key=lambda trial: sign * trial.value)


def with_settings(config: Config, settings: Mapping[str, Value]) -> Config:
    """Return the config with some keys changed, validated again.

    Raises:
        ConfigError: A key is unknown, or a value is not valid.
    """
    return load_config(config, [f"{key}={to_json(value)}" for key, value in settings.items()])


def _study(folder: Path, direction: str, prune: bool) -> optuna.Study:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = folder / "journal.log"
    try:
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        return optuna.create_study(
            study_name=_STUDY,
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize" if direction == "higher" else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP) if prune else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the journal of the search cannot be read ({error})", where=str(path), fix="remove it, or choose --out"
        ) from error


def _close_what_was_killed(study: optuna.Study) -> None:
    """Mark the trial that was running when its process died as failed; it is repeated under another number."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count: all but the killed ones."""
    return [trial for trial in study.get_trials(deepcopy=False) if "state" in trial.user_attrs]


def _is_finite(space: Space) -> bool:
    return all(isinstance(part, Choice) for part in space.values())


def _points(space: Space, first: Sequence[Mapping[str, Value]], seed: int) -> list[dict[str, Value]]:
    """Return the points that are tried before any is sampled."""
    points = [dict(point) for point in first]
    if _is_finite(space):
        values = [part.values for part in space.values() if isinstance(part, Choice)]
        grid = [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]
        random.Random(seed).shuffle(grid)
        points += [point for point in grid if point not in points]
    return points


def _propose(study: optuna.Study, points: Sequence[Mapping[str, Value]], done: int, seed: int) -> None:
    """Prepare the study for the next trial, from the seed and the ended trials alone."""
    import optuna
    from optuna.trial import TrialState

    study.sampler = optuna.samplers.TPESampler(seed=seed + done, n_startup_trials=STARTUP)
    if done < len(points) and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(dict(points[done]))


def _try(study: optuna.Study, number: int, space: Space, config: Config, folder: Path, bench: Bench) -> None:
    from optuna.trial import TrialState

    from fulltune.experiments.trials import Trial

    asked = study.ask({name: part.distribution() for name, part in space.items()})
    name = ", ".join(f"{key.rpartition('.')[2]} {setting_text(value)}" for key, value in asked.params.items())

    def report(evaluation: int, value: float) -> bool:
        asked.report(value, evaluation)
        return asked.should_prune()

    try:
        trial = bench.train(with_settings(config, asked.params), f"trial {name}", report)
    except FulltuneError as error:
        trial = Trial(math.nan, 0, 0.0, 0, broke=str(error))
    is_whole = not trial.broke and not trial.ended_early and math.isfinite(trial.value)
    state = "whole" if is_whole else "pruned" if trial.ended_early else "broke"
    if is_whole:
        _keep_answers(folder, number, trial)
    outcome = {"value": trial.value, "seconds": trial.seconds, "tokens": trial.tokens, "reason": trial.broke}
    for key, value in (outcome | {"state": state}).items():
        asked.set_user_attr(key, value)
    if is_whole:
        study.tell(asked, trial.value)
    else:
        study.tell(asked, state=TrialState.PRUNED if trial.ended_early else TrialState.FAIL)


def setting_text(value: Any) -> str:
    """Return the value of a setting, a float with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _keep_answers(folder: Path, number: int, trial: Trial) -> None:
    if trial.answers is None:
        return
    (name,) = trial.answers.metrics
    rows, applies = trial.answers.statistics(name)
    kept = {"ids": trial.answers.ids, "rows": rows.tolist(), "applies": applies.tolist()}
    kept["groups"] = trial.answers.groups
    atomic_text(answers_path(folder, number), to_json(kept) + "\n")


def answers_path(folder: Path, number: int) -> Path:
    """Return the path of the statistics per validation row of a trial that a metric judged."""
    return folder / f"answers-{number}.json"


def _tried(number: int, trial: FrozenTrial) -> Tried:
    kept = {name: trial.user_attrs[name] for name in ("value", "state", "seconds", "tokens", "reason")}
    return Tried(number=number, settings=dict(trial.params), **kept)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Import Optuna without its log line per trial."""
    try:
        import optuna
    except ImportError as error:
        raise extras.missing("a search", ["Optuna"], "sweep") from error
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
