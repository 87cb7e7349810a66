"""Compare two runs by their records and predictions; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fulltune.config import EvaluationConfig
from fulltune.errors import ConfigError, IncompatibleError, Problem, StoreError, did_you_mean
from fulltune.metrics import INFORMATIONAL, known, wording
from fulltune.metrics.accumulate import Accumulator, matching, row_values
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import not_worse, paired
from fulltune.records.run import (
    Comparison,
    MetricInfo,
    Model,
    Prediction,
    Record,
    Score,
    best_baseline,
    read_record,
)
from fulltune.records.verdict import NotWorse
from fulltune.runtime.config_file import read_mapping
from fulltune.runtime.validation import first_problem, read_failure

#: Maximum number of the most improved and most worsened rows that are listed.
SHOWN_ROWS = 20

#: Metrics that are not informative for a single row, and the metric that is used for rows instead.
_ROW_METRIC = {"macro_f1": "accuracy"}

_TUNED = "tuned"


class RunComparison(Model):
    """Comparison of the tuned models of two runs on the same rows, from ``a`` to ``b``: every difference is b − a.

    Attributes:
        a: Run id of the first, which is the reference.
        b: Run id of the second; ``improved`` means that it is better than ``a``.
        task: Task of both.
        metric: The deciding metric.
        headline: The result in one sentence.
        metrics: Definitions of the shared metrics.
        scores: ``scores["a"][metric]`` and ``scores["b"][metric]``, as in the records.
        differences: Paired difference of each shared metric that can be compared, the deciding one first.
        row_metric: The metric that the lists of rows are based on.
        fixed: Rows that are correct in ``b`` but not in ``a``; empty unless the metric is 0 or 1 on every row.
        broken: Rows that are correct in ``a`` but not in ``b``; likewise.
        most_improved: Otherwise the rows where ``b`` gains most over ``a``, at most :data:`SHOWN_ROWS`.
        most_worsened: Likewise where it loses most.
        left_out: Metrics of only one run, or of a plugin, which cannot be computed here.
        not_worse: Test that ``b`` is not worse than ``a`` by a margin; None without one.
    """

    a: str
    b: str
    task: str
    metric: str
    headline: str
    metrics: dict[str, MetricInfo]
    scores: dict[str, dict[str, Score]]
    differences: tuple[Comparison, ...]
    row_metric: str
    fixed: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    most_improved: tuple[str, ...] = ()
    most_worsened: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    not_worse: NotWorse | None = None


def compare(
    a: str | Path,
    b: str | Path,
    *,
    settings: EvaluationConfig | None = None,
    seed: int = 17,
    margin: float | None = None,
) -> RunComparison:
    """Compare the tuned models of two run folders by the tests of a run, from ``a`` to ``b``.

    Args:
        a: Folder with ``record.json`` and ``predictions.jsonl``: the reference.
        b: The run that is compared with it; differences are b − a.
        settings: Resamples, confidence level and smallest difference that counts; those of the config of ``b`` by
            default.
        seed: Seed of the bootstrap.
        margin: Loss that a test should exclude, as ``promote.margin``; None makes no such test.

    Raises:
        StoreError: A file is missing, damaged or written by a newer fulltune.
        IncompatibleError: The runs differ in task, task version, evaluation rows or a metric's version; lists all.
    """
    first, second = (read_record(Path(folder) / "record.json") for folder in (a, b))
    _check(first, second)
    settings = settings or _settings(Path(b))
    tested = settings.model_dump(include={"resamples", "confidence"})
    metrics = _shared_metrics(first, second)
    left_out = first.left_out | second.left_out
    one, two = (scored(Path(folder), metrics).without(left_out) for folder in (a, b))
    matching(one.ids, two.ids)
    differences = tuple(
        paired(two, one, metric, seed=seed, min_effect=settings.min_effect, **tested)
        for metric in metrics
        if metric.name not in INFORMATIONAL
    )
    return RunComparison(
        a=first.run_id,
        b=second.run_id,
        task=first.task,
        metric=metrics[0].name,
        headline=wording.headline(
            first.run_id,
            second.run_id,
            _value(one, metrics[0]),
            _value(two, metrics[0]),
            metrics[0],
            differences[0],
            settings.confidence,
        ),
        metrics={metric.name: metric.info() for metric in metrics},
        scores={"a": _tuned_scores(first, metrics), "b": _tuned_scores(second, metrics)},
        differences=differences,
        left_out=tuple(sorted((first.metrics.keys() | second.metrics.keys()) - one.metrics.keys())),
        not_worse=None if margin is None else not_worse(two, one, metrics[0], margin, seed=seed, **tested),
        **_changed_rows(two, one, metrics[0]),
    )


def _settings(folder: Path) -> EvaluationConfig:
    """Return the section ``evaluation`` of the config of a run; its defaults if there is no config."""
    path = folder / "config.yaml"
    return EvaluationConfig.model_validate((read_mapping(path) if path.is_file() else {}).get("evaluation") or {})


class Row(Model):
    """One row before and after: input, reference, both answers, and their scores by the metric of the rows."""

    id: str
    input: str
    reference: str | tuple[str, ...]
    before: str | tuple[str, ...]
    after: str | tuple[str, ...]
    scores: tuple[float, float] | None = None


class ChangedRows(Model):
    """Changes between two systems on the rows that both answered, with a limited number of rows of each kind.

    Attributes:
        before, after: Run ids; a baseline is named after a ``#``.
        system: The system of ``before``: ``tuned``, or a baseline.
        is_best: That baseline is the best one of the run.
        metric: The metric that rows are judged by. If it is not 0 or 1 on every row, ``fixed`` are the rows that gained
            most and ``broken`` those that lost most.
        counted: Total numbers of fixed and broken rows; None if rows change gradually.
        moved: Total numbers of rows that are better and worse, also of those that change gradually.
        lower: The metric is better if it is lower.
        reads_answers: The metric judges the answers. If it does not, like bits per byte, it judges the text itself.
    """

    before: str
    after: str
    system: str = "tuned"
    is_best: bool = False
    metric: str
    counted: tuple[int, int] | None
    moved: tuple[int, int] = (0, 0)
    lower: bool = False
    reads_answers: bool = True
    fixed: tuple[Row, ...]
    broken: tuple[Row, ...]


def changed_rows(
    before: str | Path, after: str | Path | None = None, *, system: str = "", shown: int = SHOWN_ROWS
) -> ChangedRows:
    """Return the rows that changed between the tuned models of two runs, or from a baseline to the tuned model.

    Args:
        before: Folder of a run.
        after: Folder of the run to compare with; None compares with the tuned model of the same run.
        system: System of ``before``: a baseline, or ``tuned``. By default the tuned model, or the best baseline if both
            are of one run.
        shown: Maximum number of rows of each kind.

    Raises:
        StoreError: A file is missing or damaged.
        IncompatibleError: The scores of the two are not comparable.
    """
    old = Path(before)
    new = Path(after or before)
    first, second = (read_record(folder / "record.json") for folder in (old, new))
    _check(first, second)
    best = best_baseline(first)
    system = system or (_TUNED if after else best or "zero_shot")
    metrics = _shared_metrics(first, second)
    left_out = first.left_out | second.left_out
    was, now = scored(old, metrics, system).without(left_out), scored(new, metrics).without(left_out)
    if system != _TUNED:  # some baselines answer a sample of the rows
        now = now.without(set(now.ids) - set(was.ids))
    changes = _changes(now, was, metrics[0])
    fixed, broken = changes.improved[:shown], changes.worsened[:shown]
    wanted = {*fixed, *broken}
    earlier = _answers(old, system, wanted)
    later = _answers(new, _TUNED, wanted)
    moved = len(changes.improved), len(changes.worsened)
    return ChangedRows(
        before=first.run_id + ("" if system == _TUNED else f"#{system}"),
        after=second.run_id,
        system=system,
        is_best=system == best,
        metric=changes.metric.name,
        counted=moved if changes.is_exact else None,
        moved=moved,
        lower=changes.metric.direction == "lower",
        reads_answers=changes.metric.reads_answers,
        fixed=tuple(_row(earlier[row], later[row], changes) for row in fixed),
        broken=tuple(_row(earlier[row], later[row], changes) for row in broken),
    )


def _answers(folder: Path, system: str, wanted: set[str]) -> dict[str, Prediction]:
    lines = _predictions(folder / "predictions.jsonl")
    return {line.id: line for line in lines if line.system == system and line.id in wanted}


def _row(before: Prediction, after: Prediction, changes: _Changes) -> Row:
    return Row(
        id=after.id,
        input=after.input,
        reference=after.reference,
        before=before.output,
        after=after.output,
        scores=changes.scores[after.id],
    )


def _check(a: Record, b: Record) -> None:
    """Check that the scores of both are comparable; raise :class:`IncompatibleError` with all differing fields."""
    fields = [
        ("task", a.task, b.task),
        ("task_version", a.task_version, b.task_version),
        ("data.eval.sha256", a.data.eval.sha256, b.data.eval.sha256),
    ]
    shared = [name for name in a.metrics if name in b.metrics]
    fields += [(f"metrics.{name}.version", a.metrics[name].version, b.metrics[name].version) for name in shared]
    problems = [
        _differs(field, f"{one!r} in {a.run_id}, {two!r} in {b.run_id}") for field, one, two in fields if one != two
    ]
    if problems:
        raise IncompatibleError(problems)


def _differs(field: str, values: str) -> Problem:
    return Problem(values, "the same in both runs", _FIXES.get(field, _RESCORE), field=field)


_RESCORE = "run both with the same fulltune"
_FIXES = {
    "task": "compare runs of one task",
    "data.eval.sha256": "score both on the same evaluation rows: name one eval file in both configs",
}


def _shared_metrics(a: Record, b: Record) -> list[Metric]:
    """Return the metrics of both runs that can be computed here, the deciding one first."""
    labels = list(dict.fromkeys([*a.details.get("labels", ()), *b.details.get("labels", ())]))
    metrics = known(labels, bool(a.details.get("multi_label", False)))
    shared = [name for name in a.metrics if name in b.metrics and name in metrics]
    if not shared:
        raise IncompatibleError(
            f"{', '.join(a.metrics) or 'no metric'} in {a.run_id}, {', '.join(b.metrics) or 'no metric'} in {b.run_id}",
            expected="a metric of both that fulltune itself can compute",
            fix="read the scores in the two records instead",
            field="metrics",
        )
    return [metrics[name] for name in sorted(shared, key=lambda name: name != a.metric)]


def scored(folder: Path, metrics: Sequence[Metric], system: str = _TUNED) -> Accumulator:
    """Return the rows of a system in a run, from its predictions.

    Raises:
        StoreError: There are no predictions, or they cannot be read.
    """
    accumulator = Accumulator(metrics)
    for prediction in predictions_of(folder, system):
        accumulator.add(prediction)
    return accumulator


def predictions_of(folder: Path, system: str = _TUNED) -> Iterator[Prediction]:
    """Yield the predictions of one system of a run.

    Raises:
        StoreError: There are none, or they cannot be read.
    """
    path, found = folder / "predictions.jsonl", dict[str, None]()
    for prediction in _predictions(path):
        found[prediction.system] = None
        if prediction.system == system:
            yield prediction
    if system not in found:
        raise StoreError(
            "there is no prediction of the tuned model" if system == _TUNED else f"there is no prediction of {system}",
            expected=f'lines with "system": "{system}"',
            fix=did_you_mean(system, found)
            or (f"choose one of {', '.join(found)}" if found else "name a finished run"),
            where=str(path),
        )


def _predictions(path: Path) -> Iterator[Prediction]:
    """Yield the predictions of a file; only one line is in memory at a time."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _prediction(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"the predictions cannot be read ({read_failure(error)})",
            where=str(path),
            fix="name a finished run, or run it again",
        ) from error


def _prediction(line: str, where: str) -> Prediction:
    try:
        return Prediction.model_validate_json(line)
    except ValidationError as error:
        raise StoreError(
            f"not a prediction ({first_problem(error)})",
            expected="a JSON object with system, id, input, reference and output",
            where=where,
            fix="run it again, or restore the file",
        ) from error


def deciding_metric(record: Record) -> Metric:
    """Return the deciding metric for the labels of the run.

    Raises:
        ConfigError: The metric is of another package, and cannot be computed again from predictions.
    """
    metrics = known(record.details.get("labels", ()), bool(record.details.get("multi_label", False)))
    if record.metric not in metrics:
        raise ConfigError(
            f"the metric {record.metric!r} of the task {record.task} is none of fulltune's own",
            expected="a task whose deciding metric fulltune can compute",
            fix="run each method by itself",
            field="task",
        )
    return metrics[record.metric]


def _tuned_scores(record: Record, metrics: list[Metric]) -> dict[str, Score]:
    scores = record.scores.get(_TUNED, {})
    return {metric.name: scores[metric.name] for metric in metrics if metric.name in scores}


def _value(system: Accumulator, metric: Metric) -> float:
    return float(metric.value(system.statistics(metric.name)[0].sum(axis=0)))


@dataclass(frozen=True)
class _Changes:
    """Ids of all rows that changed, and the scores of all rows before and after.

    ``is_exact``: every row scores 0 or 1. Otherwise the rows that changed most come first.
    """

    metric: Metric
    is_exact: bool
    improved: Sequence[str]
    worsened: Sequence[str]
    scores: Mapping[str, tuple[float, float]]


def _changes(a: Accumulator, b: Accumulator, deciding: Metric) -> _Changes:
    """Return the rows that changed from ``b`` to ``a``, by a metric that is meaningful for a single row."""
    metric = a.metrics.get(_ROW_METRIC.get(deciding.name, ""), deciding)
    one, two = row_values(a, b, metric.name)
    gain = (one - two) if metric.direction == "higher" else (two - one)
    values = np.concatenate([one, two])
    is_exact = bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())
    # NaN comes last and is neither above nor below 0.
    order = np.arange(len(gain)) if is_exact else np.argsort(-gain, kind="stable")
    improved = [a.ids[row] for row in order if gain[row] > 0]
    worsened = [a.ids[row] for row in (order if is_exact else order[::-1]) if gain[row] < 0]
    scores = zip(two.tolist(), one.tolist(), strict=True)
    return _Changes(metric, is_exact, improved, worsened, dict(zip(a.ids, scores, strict=True)))


def _changed_rows(a: Accumulator, b: Accumulator, deciding: Metric) -> dict[str, Any]:
    """Return the fields of a comparison about the rows that changed."""
    changes = _changes(a, b, deciding)
    names = ("fixed", "broken") if changes.is_exact else ("most_improved", "most_worsened")
    shown = None if changes.is_exact else SHOWN_ROWS
    rows = (tuple(changes.improved[:shown]), tuple(changes.worsened[:shown]))
    return {"row_metric": changes.metric.name} | dict(zip(names, rows, strict=True))
