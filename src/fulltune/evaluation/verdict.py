"""Compare the predictions of any tools on the same rows: ``fulltune verdict A B``, :func:`verdict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fulltune.data.findings import rows
from fulltune.errors import ConfigError, DataError, Problem, abridged, did_you_mean
from fulltune.evaluation.prediction_files import Answers, read_answers
from fulltune.metrics import get, known, wording
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.compare import MIN_EFFECT, holm, not_worse, paired
from fulltune.metrics.ratios import mean_of
from fulltune.records.run import Comparison, Prediction
from fulltune.records.verdict import ManyVerdicts, Measured, NotWorse, PairVerdict, Requirement

#: Default margin of "not worse": one point, or 1% of a score without bounds.
MARGIN = 0.01

#: Rows of a kind that a message lists.
_LISTED = 3


def verdict(
    a: Any,
    b: Any,
    *others: Any,
    metric: str | None = None,
    group: str | None = None,
    margin: float | None = None,
    require: Requirement | None = None,
    lower_is_better: bool = False,
    columns: Mapping[str, str] | None = None,
    min_effect: float = MIN_EFFECT,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 17,
    out: str | Path = "runs",
) -> PairVerdict | ManyVerdicts:
    """Compare the predictions of systems on the same rows, by the tests and in the words of a run.

    Args:
        a: The reference: a file (JSONL, CSV, Parquet), rows in memory, or a run; see
            :func:`~fulltune.evaluation.prediction_files.read_answers`.
        b: What is compared with it; ``improved`` means that it is better than ``a``.
        others: More of the kind of ``b``; p-values are then adjusted for their number (Holm 1979).
        metric: Name of a metric, or of a column of numbers. By default that of the runs, else ``score`` if there is
            such a column, else ``accuracy``.
        group: Column that names the group of a row, such as its document. Groups are swapped and resampled as a whole.
        margin: Smallest loss that matters, for the test that ``b`` is not worse: 0.01 is a point of a score between 0
            and 1, and 1% of any other.
        require: What every system must be for ``passed``: ``improved``, or ``not-worse`` (margin 0.01 by default).
        lower_is_better: True if a low score is good, for a column of numbers.
        columns: Names of columns by role: ``id``, ``target``, ``prediction``, ``score``.
        min_effect: Smallest difference that counts, as ``evaluation.min_effect``.
        confidence: Confidence level of the intervals.
        resamples: Bootstrap resamples.
        seed: Seed of swaps and resamples.
        out: The runs folder.

    Returns:
        The verdict on ``b``, or the verdicts on all if there are ``others``.

    Raises:
        DataError: The rows of the systems differ, or a file cannot be read; lists all problems.
        ConfigError: The metric is unknown, or an option has no meaning.
        StoreError: There is no such run.
    """
    _check(margin, require, min_effect, confidence, resamples)
    margin = MARGIN if margin is None and require == "not-worse" else margin
    systems = [_read(source, metric, out, columns, group or "") for source in (a, b, *others)]
    measure = _metric(systems, metric, lower_is_better)
    _check_rows(systems, measure)
    left_out = frozenset[str]().union(*(system.left_out for system in systems))
    scored = [_scored(system, measure).without(left_out) for system in systems]
    settings = {"resamples": resamples, "confidence": confidence, "seed": seed}
    found = [paired(one, scored[0], measure, min_effect=min_effect, **settings) for one in scored[1:]]  # type: ignore[arg-type]
    adjusted = holm([one.p for one in found])
    judge = _Judge(measure, scored, _names(systems), confidence, margin, require, settings)
    verdicts = tuple(judge.pair(index + 1, found[index], adjusted[index]) for index in range(len(found)))
    if len(verdicts) == 1:
        return verdicts[0]
    return ManyVerdicts(
        metric=measure.name,
        reference=judge.names[0],
        require=require or "",
        passed=all(one.passed for one in verdicts),
        comparisons=verdicts,
    )


def _read(source: Any, metric: str | None, out: str | Path, columns: Mapping[str, str] | None, group: str) -> Answers:
    """Read one system; a metric that is neither known nor a column is reported as such, not as a missing column."""
    score = metric if metric and metric not in known() else ""
    try:
        return read_answers(source, out, columns=columns, score=score, group=group)
    except DataError as error:
        if score and any(problem.field == score for problem in error.problems):
            names = ", ".join(sorted(known()))
            raise ConfigError(
                f"unknown metric {score!r}, and no column of this name",
                expected=f"a column of numbers, or one of {names}",
                fix=did_you_mean(score, known()),
                field="metric",
            ) from error
        raise


@dataclass(frozen=True)
class _Judge:
    """The parts that all pairs of a comparison share; the first system is the reference."""

    metric: Metric
    scored: Sequence[Accumulator]
    names: Sequence[str]
    confidence: float
    margin: float | None
    require: Requirement | None
    settings: Mapping[str, Any]

    def pair(self, index: int, found: Comparison, adjusted: float) -> PairVerdict:
        if len(self.scored) > 2:
            found = self._adjusted(found, adjusted)
        margin = self._not_worse(index)
        a, b = (self._measured(number) for number in (0, index))
        headline = wording.headline(a.name, b.name, a.value, b.value, self.metric, found, self.confidence)
        return PairVerdict(
            metric=self.metric.name,
            label=wording.label(self.metric),
            direction=self.metric.direction,
            n=found.n,
            groups=found.groups,
            confidence=self.confidence,
            a=a,
            b=b,
            difference=Measured(value=found.delta, interval=(found.low, found.high)),
            p=found.p,
            test=found.test,
            p_holm=found.p_holm if len(self.scored) > 2 else found.p,
            smallest_detectable=found.smallest_detectable,
            min_effect=found.min_effect,
            verdict=found.verdict,
            not_worse=margin,
            require=self.require or "",
            passed=self._passed(found, margin),
            headline=headline,
            notes=tuple(self._notes(found, margin)),
        )

    def _adjusted(self, found: Comparison, adjusted: float) -> Comparison:
        """Return the comparison as one of several: a verdict must hold for the adjusted p-value."""
        claims = found.verdict in ("improved", "worse") and adjusted > 1 - self.confidence
        changes = {"p_holm": adjusted} | ({"verdict": "no detectable change"} if claims else {})
        return found.model_copy(update=changes)

    def _measured(self, index: int) -> Measured:
        score = self.scored[index].scores(**self.settings)[self.metric.name]
        return Measured(value=score.value, interval=(score.low, score.high), name=self.names[index])

    def _not_worse(self, index: int) -> NotWorse | None:
        if self.margin is None:
            return None
        return not_worse(self.scored[index], self.scored[0], self.metric, self.margin, **self.settings)

    def _passed(self, found: Comparison, margin: NotWorse | None) -> bool:
        if self.require == "improved":
            return found.verdict == "improved"
        return self.require is None or (margin is not None and margin.verdict == "not worse")

    def _notes(self, found: Comparison, margin: NotWorse | None) -> list[str]:
        shown = [wording.detectable(found, self.metric)]
        if margin is not None:
            shown.append(_margin_note(margin, self.metric))
        return [note for note in shown if note]


def _margin_note(found: NotWorse, metric: Metric) -> str:
    amount = wording.amount(found.margin, metric)
    if found.verdict == "not worse":
        return f"Not worse by {amount} or more (p = {found.p:.2g}, one-sided)."
    if found.verdict == "too few rows":
        return f"Too few rows to exclude a loss of {amount}."
    return f"A loss of {amount} or more cannot be excluded (p = {found.p:.2g}, one-sided)."


def _check(margin: float | None, require: str | None, min_effect: float, confidence: float, resamples: int) -> None:
    problems = []
    if margin is not None and not 0 < margin < 1:
        problems.append(
            Problem(f"margin is {margin}", "a number between 0 and 1, e.g. 0.01 for a point", field="margin")
        )
    if require not in (None, "improved", "not-worse"):
        problems.append(Problem(f"require is {require!r}", "improved or not-worse", field="require"))
    if not 0 <= min_effect < 1:
        problems.append(Problem(f"min_effect is {min_effect}", "0, or a number below 1", field="min_effect"))
    if not 0.5 < confidence < 1:
        problems.append(Problem(f"confidence is {confidence}", "a number between 0.5 and 1", field="confidence"))
    if not 100 <= resamples <= 100_000:
        problems.append(Problem(f"resamples is {resamples}", "100 to 100,000", field="resamples"))
    if problems:
        raise ConfigError(problems)


def _metric(systems: Sequence[Answers], name: str | None, lower_is_better: bool) -> Metric:
    """Return the metric to compare by.

    Raises:
        ConfigError: It is unknown.
    """
    has_scores = all(row.values.get("score") is not None for system in systems for row in system.rows)
    labels = tuple(dict.fromkeys(label for system in systems for label in (*system.labels, *_labels(system))))
    several = any(system.multi_label for system in systems)
    metrics = known(labels, several)
    name = name or next((system.metric for system in systems if system.metric), "score" if has_scores else "accuracy")
    if has_scores and name not in metrics:
        return _score_metric(name, systems, lower_is_better)
    if lower_is_better:
        raise ConfigError(
            f"the direction of {name!r} is known", expected="a column of numbers", field="lower_is_better"
        )
    return get(name, labels, several)


def _labels(system: Answers) -> Sequence[str]:
    """Return all targets of a system as labels; they have no order."""
    found: set[str] = set()
    for row in system.rows:
        found.update((row.reference,) if isinstance(row.reference, str) else row.reference)
    return sorted(found)


def _score_metric(name: str, systems: Sequence[Answers], lower_is_better: bool) -> Metric:
    """Return the mean of a column of numbers; between 0 and 1 it is shown in points."""
    values = [float(row.values["score"]) for system in systems for row in system.rows]
    bounded = all(0 <= value <= 1 for value in values)

    def statistics(prediction: Prediction) -> Array:
        return np.array([float(prediction.values["score"]), 1.0])

    return mean_of(
        statistics,
        name=name,
        direction="lower" if lower_is_better else "higher",
        source="mean of a column of the files",
        percent=bounded,
    )


def _scored(system: Answers, metric: Metric) -> Accumulator:
    accumulator = Accumulator([metric])
    for row in system.rows:
        accumulator.add(row)
    if not accumulator.rows(metric.name).n:
        raise DataError(
            f"{metric.name} applies to no row of {system.name}",
            expected="the columns that it is computed from",
            fix="choose another --metric",
            where=system.name,
        )
    return accumulator


def _names(systems: Sequence[Answers]) -> list[str]:
    """Return short names that differ: file names, with their folders if those are equal."""
    short = [Path(system.name).name if system.columns else system.name for system in systems]
    if len(set(short)) == len(short):
        return short
    long = [system.name for system in systems]
    if len(set(long)) == len(long):
        return long
    return [f"{name} ({letter})" for name, letter in zip(short, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False)]


def _check_rows(systems: Sequence[Answers], metric: Metric) -> None:
    """Check that all systems answered the same rows, and, if the metric reads them, with the same targets.

    Raises:
        DataError: They differ; names rows.
    """
    first = {row.id: row for row in systems[0].rows}
    problems = list[Problem]()
    for system in systems[1:]:
        own = {row.id: row for row in system.rows}
        problems += _missing_rows(first.keys() - own.keys(), systems[0].name, system.name)
        problems += _missing_rows(own.keys() - first.keys(), system.name, systems[0].name)
        if metric.reads_target and systems[0].has_targets and system.has_targets:
            differ = [key for key, row in first.items() if key in own and own[key].reference != row.reference]
            problems += _other_targets(differ, first, own, systems[0].name, system.name)
        groups = [key for key, row in first.items() if key in own and own[key].group != row.group]
        if groups and any(row.group for row in own.values()):
            listed = abridged([repr(row) for row in groups], _LISTED)
            found = f"{rows(len(groups), 'be')} in other groups than in {systems[0].name}: {listed}"
            problems.append(Problem(found, "the same groups in all files", where=system.name, field="group"))
    if problems:
        raise DataError(problems)


def _missing_rows(ids: set[str], there: str, here: str) -> list[Problem]:
    if not ids:
        return []
    count = f"{len(ids):,} row{'s' if len(ids) > 1 else ''} of {there}"
    shown = [repr(row) for row in sorted(ids)]
    found = f"{count} {'have' if len(ids) > 1 else 'has'} no answer here: {abridged(shown, _LISTED)}"
    return [Problem(found, "the same ids in all files, in any order", "answer the same rows", here, "id")]


def _other_targets(
    ids: Sequence[str], a: Mapping[str, Prediction], b: Mapping[str, Prediction], there: str, here: str
) -> list[Problem]:
    if not ids:
        return []
    one = ids[0]
    count = "1 row has another target" if len(ids) == 1 else f"{len(ids):,} rows have other targets"
    found = f"{count} than in {there}: {one!r} has {_shown(b[one])} here and {_shown(a[one])} there"
    return [Problem(found, "the same targets in all files", "score both on the same data", here, "target")]


def _shown(row: Prediction) -> str:
    text = repr(row.reference if isinstance(row.reference, str) else list(row.reference))
    return text if len(text) <= 40 else f"{text[:39]}…"
