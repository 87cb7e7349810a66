"""Run a config with several seeds, and judge the mean over rows and seeds: ``train.seeds``, ``fulltune run --seeds 3``.

The runs are complete runs of their own. They share the rows, the split and the baselines, which come from the cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fulltune.config import MOST_SEEDS, Config, ConfigSource, load_config, refuse_folds, with_one_seed
from fulltune.errors import ConfigError
from fulltune.metrics import seeds as over_seeds
from fulltune.metrics import wording
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import holm
from fulltune.metrics.decide import Decision, decide
from fulltune.metrics.run_comparison import deciding_metric, scored
from fulltune.pipeline.run import run
from fulltune.records.run import Comparison, Record, Score, base_kept, read_record
from fulltune.records.seeded import SeededRuns, SeedOutcome
from fulltune.runtime import distributed
from fulltune.runtime.files import atomic_text, to_json
from fulltune.runtime.progress import Progress, progress_of
from fulltune.runtime.validation import read_object
from fulltune.store.jobs import job_folder, locked


def run_seeds(
    config: ConfigSource | None = None,
    *,
    seeds: int | None = None,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | bool | None = None,
    **options: Any,
) -> SeededRuns:
    """Run a config with several seeds; the same call resumes after the last finished run.

    Args:
        config, out, overrides, progress, options: As in :func:`fulltune.run`.
        seeds: Number of trainings: ``train.seed`` and the seeds after it. The split keeps the seed of the config.
            Default: ``train.seeds``, or :data:`~fulltune.metrics.seeds.LEAST_SEEDS` if it is 1.

    Returns:
        The verdict on the mean over the seeds, and the runs.

    Raises:
        FulltuneError: Anything that stops a run.
    """
    loaded, progress = load_config(config, overrides, options=options), progress_of(progress)
    if seeds is None:
        seeds = loaded.train.seeds if loaded.train.seeds > 1 else over_seeds.LEAST_SEEDS
    if not 1 <= seeds <= MOST_SEEDS:
        raise ConfigError(f"{seeds} seeds", expected=f"1 to {MOST_SEEDS}", field="seeds")
    if distributed.launched() > 1:
        raise ConfigError("several seeds and several processes", expected="one of them", fix="run each seed by itself")
    refuse_folds(loaded, "a run of several seeds")
    config = _one_split(loaded)
    folder = job_folder(out, "seeds", config, {"seeds": seeds})
    with locked(folder):
        records = _records(config, seeds, folder, Path(out), progress)
        result = _summary(config, records, folder)
        atomic_text(folder / "seeds.json", result.to_json())
    return result


def _one_split(config: Config) -> Config:
    """Return the config of one training, with the seed of its split, which otherwise follows the seed of training."""
    seed = config.train.seed if config.data.seed is None else config.data.seed
    return with_one_seed(config).model_copy(update={"data": config.data.model_copy(update={"seed": seed})})


def _records(config: Config, seeds: int, folder: Path, out: Path, progress: Progress) -> dict[int, Record]:
    """Return the record of each seed; runs that are finished are not repeated."""
    path = folder / "runs.json"
    done: dict[str, str] = read_object(path, "the list of runs") if path.exists() else {}
    records = {}
    for seed in range(config.train.seed, config.train.seed + seeds):
        known = out / done.get(str(seed), "-") / "record.json"
        if known.exists():
            records[seed] = read_record(known)
            continue
        progress.note(f"seed {seed}")
        with_seed = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
        records[seed] = run(with_seed, out=out, progress=progress)
        done[str(seed)] = records[seed].run_id
        atomic_text(path, to_json(done))
    return records


def _summary(config: Config, records: Mapping[int, Record], folder: Path) -> SeededRuns:
    every = list(records.values())
    first, metric = every[0], deciding_metric(every[0])
    tuned = [_rows(record, metric, "tuned") for record in every]
    settings = config.evaluation.model_dump(include={"resamples", "confidence"})
    scores = {name: row[metric.name] for name, row in first.scores.items() if metric.name in row}
    scores["tuned"] = over_seeds.score(tuned, metric, **settings)
    baselines = [name for name in scores if name != "tuned"]
    comparison = _adjusted(
        {
            f"tuned vs {name}": over_seeds.difference(
                tuned, [_rows(first, metric, name)], metric, min_effect=config.evaluation.min_effect, **settings
            )
            for name in baselines
        }
    )
    found = _together(decide(comparison, _by_system(scores, metric, every), metric, first.confidence), every)
    spread = over_seeds.spread(tuned, metric)
    values = [record.scores["tuned"][metric.name].value for record in every]
    return SeededRuns(
        task=first.task,
        model=config.model,
        metric=metric.name,
        direction=metric.direction,
        confidence=first.confidence,
        runs=tuple(
            SeedOutcome(seed=seed, run_id=record.run_id, value=value, outcome=record.outcome)
            for (seed, record), value in zip(records.items(), values, strict=True)
        ),
        scores=scores,
        spread=spread,
        comparison=comparison,
        outcome=found.outcome,
        reasons=found.reasons,
        headline=f"{found.headline} {_seeds_in_words(values, spread, metric)}",
        folder=str(folder),
    )


def _rows(record: Record, metric: Metric, system: str) -> Accumulator:
    return scored(record.folder, [metric], system).without(record.left_out)


def _adjusted(comparison: Mapping[str, Comparison]) -> dict[str, Comparison]:
    adjusted = holm([one.p for one in comparison.values()])
    return {
        name: one.model_copy(update={"p_holm": p}) for (name, one), p in zip(comparison.items(), adjusted, strict=True)
    }


def _by_system(scores: Mapping[str, Score], metric: Metric, records: Sequence[Record]) -> dict[str, dict[str, Score]]:
    """Return what the decision reads; of the MCC of a classifier, that of the worst seed.

    A constant answer has no interval, and is the worst.
    """
    systems = {name: {metric.name: score} for name, score in scores.items()}
    mccs = [record.scores["tuned"]["mcc"] for record in records if "mcc" in record.scores["tuned"]]
    if mccs:
        systems["tuned"]["mcc"] = min(mccs, key=lambda score: -math.inf if math.isnan(score.low) else score.low)
    return systems


def _together(decision: Decision, records: Sequence[Record]) -> Decision:
    """Return the decision on the scores, unless a training itself failed or forgot too much."""
    stopped = [record for record in records if record.outcome == "stopped"]
    if stopped:
        reasons = tuple(f"{record.run_id} was stopped: {'; '.join(record.reasons)}" for record in stopped)
        return Decision(
            "stopped", (*reasons, *decision.reasons), f"{_count(stopped, records)} stopped. {decision.headline}"
        )
    kept = [record for record in records if base_kept(record.guards) is not None]
    if kept:
        reasons = tuple(f"{record.run_id} kept the base: no training step beat it" for record in kept)
        return _worse(decision, len(kept) == len(records), reasons, f"{_count(kept, records)} kept the base.")
    lost = [record for record in records if any(one.verdict == "lost" for one in record.retention.values())]
    if lost:
        rejects = any(record.outcome == "rejected" for record in lost)
        reasons = tuple(f"{record.run_id} forgot more than the budget allows" for record in lost)
        return _worse(decision, rejects, reasons, f"{_count(lost, records)} forgot too much.")
    return decision


def _worse(decision: Decision, rejects: bool, reasons: tuple[str, ...], lead: str) -> Decision:
    """Return a decision that is not accepted, for reasons other than the scores."""
    rejects = rejects or decision.outcome == "rejected"
    return Decision(
        "rejected" if rejects else "undecided", (*reasons, *decision.reasons), f"{lead} {decision.headline}"
    )


def _count(some: Sequence[Record], records: Sequence[Record]) -> str:
    return f"{len(some)} of {len(records)} runs"


def _seeds_in_words(values: Sequence[float], spread: float, metric: Metric) -> str:
    shown = ", ".join(wording.figures(*values))
    if len(values) == 1:
        return f"One seed ({shown}): another may give another score."
    return f"{len(values)} seeds ({shown}), {wording.amount(spread, metric)} apart (standard deviation)."
