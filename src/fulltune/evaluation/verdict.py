"""Compare the predictions of any tools on the same rows: ``fulltune verdict A B``, :func:`verdict`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from fulltune.data.columns.roles import name_words
from fulltune.data.duplicates import fold
from fulltune.data.findings import rows
from fulltune.errors import ConfigError, DataError, Problem, did_you_mean
from fulltune.evaluation.comparable import (
    check_answered,
    check_rows,
    check_sizes,
    check_units,
    on_common_rows,
    size_difference,
    with_groups,
)
from fulltune.evaluation.guesses import are_labels, label_sets_guessed
from fulltune.evaluation.prediction_files import Answers, read_answers
from fulltune.evaluation.related_rows import Related
from fulltune.metrics import INFORMATIONAL, get, known, wording
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.compare import MIN_EFFECT, holm, not_worse, paired
from fulltune.metrics.power import rows_needed
from fulltune.metrics.ratios import mean_of
from fulltune.records.run import Comparison, Prediction
from fulltune.records.verdict import ManyVerdicts, Measured, NotWorse, PairVerdict, Requirement

#: Default margin of "not worse": one point, or 1% of a score without bounds.
MARGIN = 0.01

#: Words in the name of a column whose low numbers are good.
_LOW = frozenset(
    {"loss", "losses", "nll", "error", "errors", "err", "wer", "cer", "ter", "mer", "perplexity", "ppl", "bpb", "bpc"}
    | {"mae", "mse", "rmse", "brier", "regret", "latency", "seconds", "ms", "duration", "time", "runtime", "risk"}
    | {"cost", "costs", "penalty", "penalties", "edits", "distance", "divergence", "kl", "jsd", "deviation", "bits"}
    | {"entropy", "surprisal", "wrong", "incorrect", "mistake", "mistakes", "failure", "failures", "failed"}
    | {"violations", "toxicity", "toxic", "harm", "hallucination", "hallucinations", "hallucinated"}
    | {"refusal", "refusals", "refused", "mape", "smape"}
)

#: Endings of such words: ``logloss``, ``crossentropy``.
_LOW_ENDINGS = ("loss", "losses", "error", "errors", "entropy")

#: Metrics of labels: a label in another spelling is another label.
_OF_LABELS = frozenset({"accuracy", "macro_f1", "micro_f1", "mcc"})


def verdict(
    a: Any,
    b: Any,
    *others: Any,
    metric: str | None = None,
    group: str | None = None,
    margin: float | None = None,
    require: Requirement | None = None,
    lower_is_better: bool | None = None,
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
        metric: Name of a metric, or of a column of numbers. By default that of the runs, else ``accuracy`` if there
            are answers, and ``score`` if there is such a column. Files with both need the name.
        group: Column that names the group of a row, such as its document. Groups are swapped and resampled as a whole.
            If the ids or another column look like one, the verdict is that on these groups, and a requirement has to
            hold with and without them; the column of ids as group states that rows are independent.
        margin: Smallest loss that matters, for the test that ``b`` is not worse: 0.01 is a point of a score between 0
            and 1, and 1% of any other.
        require: What every system must be for ``passed``: ``improved``, or ``not-worse`` (margin 0.01 by default).
        lower_is_better: True if a low score is good, for a column of numbers; by default a high one, unless the name
            of the column contradicts.
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
    measure = _metric(systems, metric, lower_is_better, dict(columns or {}))
    check_answered(systems, measure)
    check_rows(systems, measure)
    check_sizes(systems, measure)
    check_units(systems, measure)
    systems = with_groups(systems)
    left_out = frozenset[str]().union(*(system.left_out for system in systems))
    scored = [_scored(system, measure).without(left_out) for system in systems]
    settings = {"resamples": resamples, "confidence": confidence, "seed": seed}
    scored = on_common_rows(systems, scored, measure)
    judge = _Judge(measure, systems, scored, _names(systems), confidence, margin, require, min_effect, settings)
    verdicts = judge.verdicts()
    if by := _related(systems):
        grouped = replace(judge, scored=[one.grouped_by(by.groups) for one in scored]).verdicts()
        verdicts = tuple(_also_grouped(*both, by) for both in zip(verdicts, grouped, strict=True))
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
    of_values = metric in known() and not known()[str(metric)].reads_answers
    try:
        return read_answers(source, out, columns=columns, score=score, group=group, of_values=of_values)
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
    systems: Sequence[Answers]
    scored: Sequence[Accumulator]
    names: Sequence[str]
    confidence: float
    margin: float | None
    require: Requirement | None
    min_effect: float
    settings: Mapping[str, Any]

    def verdicts(self) -> tuple[PairVerdict, ...]:
        """Return the verdicts on all systems but the first, adjusted for their number."""
        first, *others = self.scored
        found = [
            paired(one, first, self.metric, min_effect=self.min_effect, **self.settings)
            for index, one in enumerate(others, start=1)
        ]
        found = [self._beyond_artifact(*one) for one in enumerate(found, start=1)]
        adjusted = holm([one.p for one in found])
        return tuple(self.pair(index + 1, *both) for index, both in enumerate(zip(found, adjusted, strict=True)))

    def _beyond_artifact(self, index: int, found: Comparison) -> Comparison:
        """Return the comparison without its claim if the interval includes a difference that is an artifact."""
        reach = abs(self._artifact(index) * self._measured(0).value) if self._artifact(index) else 0.0
        near = min(abs(found.low), abs(found.high))
        if found.verdict not in ("improved", "worse") or near >= reach:
            return found
        least = reach + abs(found.delta) - near
        return found.model_copy(update={"verdict": "no detectable change", "min_effect": least})

    def _artifact(self, index: int) -> float:
        """Return by what fraction a system is better than the first only because it counts more bytes."""
        return size_difference(self.systems[0], self.systems[index], self.metric)

    def pair(self, index: int, found: Comparison, adjusted: float) -> PairVerdict:
        if len(self.scored) > 2:
            found = self._adjusted(found, adjusted)
        margin = self.margins[index - 1] if self.margins else None
        a, b = (self._measured(number) for number in (0, index))
        headline = wording.headline(a.name, b.name, a.value, b.value, self.metric, found, self.confidence)
        guessing = self._guessing_note(index) if found.verdict == "improved" else ""
        notes = self._notes(index, found, margin)
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
            passed=self._passed(found, margin) and not (guessing and self.require == "improved"),
            headline=headline,
            notes=tuple(note for note in (*notes[:1], guessing, *notes[1:]) if note),
        )

    def _adjusted(self, found: Comparison, adjusted: float) -> Comparison:
        """Return the comparison as one of several: a verdict must hold for the adjusted p-value."""
        claims = found.verdict in ("improved", "worse") and adjusted > 1 - self.confidence
        changes = {"p_holm": adjusted} | ({"verdict": "no detectable change"} if claims else {})
        return found.model_copy(update=changes)

    def _measured(self, index: int) -> Measured:
        score = self.scored[index].scores(**self.settings)[self.metric.name]
        return Measured(value=score.value, interval=(score.low, score.high), name=self.names[index])

    @cached_property
    def margins(self) -> list[NotWorse]:
        """The tests against the margin, adjusted for their number; empty if none was asked for."""
        if self.margin is None:
            return []
        first, *others = self.scored
        found = [
            not_worse(one, first, self.metric, self.margin, artifact=max(0.0, self._artifact(index)), **self.settings)
            for index, one in enumerate(others, start=1)
        ]
        if len(found) == 1:
            return found
        adjusted = holm([one.p for one in found])
        level = (1 - self.confidence) / 2
        return [
            one.model_copy(
                update={"p": p} | ({"verdict": "cannot tell"} if one.verdict == "not worse" and p > level else {})
            )
            for one, p in zip(found, adjusted, strict=True)
        ]

    def _passed(self, found: Comparison, margin: NotWorse | None) -> bool:
        if self.require == "improved":
            return found.verdict == "improved"
        return self.require is None or (margin is not None and margin.verdict == "not worse")

    def _notes(self, index: int, found: Comparison, margin: NotWorse | None) -> list[str]:
        shown = [self._power_note(found), *(self._spelling_note(number) for number in (0, index))]
        if artifact := self._artifact(index):
            shown.append(
                "The likelihoods are of different numbers of bytes: a difference of "
                f"{abs(artifact):.2g} of the score is no finding."
            )
        if self.metric.name not in known():
            lower = self.metric.direction == "lower"
            shown.append(f"{'Lower' if lower else 'Higher'} is better{'' if lower else ' (else: --lower-is-better)'}.")
        if self.confidence != 0.95:
            shown.append(f"Tests and intervals at {self.confidence:.4g} instead of 0.95.")
        if margin is not None:
            shown.append(_margin_note(margin, self.metric))
        return shown

    def _power_note(self, found: Comparison) -> str:
        """Return what as many rows detect, and how many would detect a difference like the observed one."""
        needed = rows_needed(found, self.confidence) or 0
        unclear = found.verdict == "no detectable change" and not found.is_certain
        if not unclear or abs(found.delta) < found.min_effect or needed <= found.n:
            return wording.detectable(found, self.metric)
        what = "rows in groups like these" if found.groups else "rows"
        return f"{wording.detectable(found, self.metric)} One like the observed would need about {needed:,} {what}."

    def _spelling_note(self, index: int) -> str:
        """Return how many answers are wrong by their spelling alone; empty if there are none."""
        if self.metric.name not in _OF_LABELS:
            return ""
        pairs = ((_label_set(row.output), _label_set(row.reference)) for row in self.systems[index].rows)
        count = sum(own != expected and set(map(fold, own)) == set(map(fold, expected)) for own, expected in pairs)
        what = "Wrong only by case, white space, invisible characters or Unicode form"
        return f"{what}: {rows(count)} of {self.names[index]}." if count else ""

    def _guessing_note(self, index: int) -> str:
        """Return that a better system may know nothing: a guess has a higher macro-F1 than one label for all rows."""
        answers = self.systems[index]
        if not self.metric.reads_answers or not (self.metric.name in _OF_LABELS or are_labels(answers)):
            return ""
        evidence = label_sets_guessed(answers, self.confidence) if answers.multi_label else self._mcc_of_guess(answers)
        if not evidence:
            return ""
        failed = ", so that the requirement does not hold" if self.require == "improved" else ""
        return f"The answers of {self.names[index]} cannot be told from guessing: {evidence}{failed}."

    def _mcc_of_guess(self, answers: Answers) -> str:
        """Return the MCC of answers if it may be 0 or less; empty if it is not."""
        labels = _labels(answers)
        if len(labels) < 2:
            return ""
        mcc = get("mcc", labels)
        accumulator = Accumulator([mcc])
        for row in answers.rows:
            accumulator.add(row)
        score = accumulator.scores(**self.settings)[mcc.name]
        if score.low > 0:
            return ""
        value, low, high = map(wording.figure, (score.value, score.low, score.high))
        return f"MCC {value} ({'no interval' if math.isnan(score.low) else f'{low} to {high}'})"


def _related(systems: Sequence[Answers]) -> Related | None:
    """Return the column by which rows belong together, unless groups are given."""
    if any(row.group for system in systems for row in system.rows):
        return None
    return next((system.related for system in systems if system.related), None)


def _also_grouped(found: PairVerdict, grouped: PairVerdict, by: Related) -> PairVerdict:
    """Return the verdict on groups of rows that belong together, or on rows if that claims less, with a note."""
    claims = grouped.verdict in ("improved", "worse") and grouped.verdict != found.verdict
    if claims or (grouped.passed and not found.passed):
        chosen, other, how = found, grouped, f"With --group {by.column}" if by.column else "With these groups"
    else:
        chosen, other, how = grouped, found, "If they are (--group with the column of ids)"
    same = (other.verdict, other.passed) == (chosen.verdict, chosen.passed)
    outcome = "the same verdict" if same else f"{other.verdict} (p = {other.p_holm:.2g})"
    passes = ", and the requirement would hold" if other.passed and not chosen.passed else ""
    what = f"{by.column!r} has {by.count:,} values" if by.column else f"The ids begin in {by.count:,} ways"
    note = f"{what} for {found.n:,} rows; rows that belong together are not independent. {how}: {outcome}{passes}."
    return chosen.model_copy(update={"notes": (*chosen.notes, note), "passed": found.passed and grouped.passed})


def _label_set(answer: str | tuple[str, ...]) -> set[str]:
    return {answer} if isinstance(answer, str) else set(answer)


def _margin_note(found: NotWorse, metric: Metric) -> str:
    amount = wording.amount(found.margin, metric)
    if found.verdict == "not worse":
        return f"Not worse by {amount} or more (p = {found.p:.2g}, one-sided)."
    if math.isnan(found.p) and found.verdict != "too few rows":
        return "A loss cannot be excluded: a score is not a finite number."
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


def _metric(
    systems: Sequence[Answers], name: str | None, lower_is_better: bool | None, columns: Mapping[str, str]
) -> Metric:
    """Return the metric to compare by.

    Raises:
        ConfigError: It is unknown, or may be one of several.
    """
    has_scores = all(row.values.get("score") is not None for system in systems for row in system.rows)
    labels = tuple(dict.fromkeys(label for system in systems for label in (*system.labels, *_labels(system))))
    several = any(system.multi_label for system in systems)
    metrics = known(labels, several)
    name = name or next((system.metric for system in systems if system.metric), "")
    if not name and has_scores and "score" not in columns and any(_has_texts(system) for system in systems):
        other = ", or a metric of the answers such as --metric accuracy"
        raise ConfigError(
            "there are answers and a column 'score', which may be a confidence",
            expected="the name of what is compared",
            fix="add --metric score" + (other if any(system.answered for system in systems) else ""),
            field="metric",
        )
    name = name or ("score" if has_scores else "accuracy")
    if name in INFORMATIONAL:
        raise ConfigError(
            f"{name!r} cannot decide: neither direction is better, or its estimate is biased (docs/evidence.md)",
            expected="another metric",
            field="metric",
        )
    if has_scores and name not in metrics:
        _check_direction(columns.get("score", name) if name == "score" else name, lower_is_better)
        return _score_metric(name, systems, bool(lower_is_better))
    if lower_is_better is not None:
        raise ConfigError(
            f"the direction of {name!r} is known", expected="a column of numbers", field="lower_is_better"
        )
    return get(name, labels, several)


def _check_direction(column: str, lower_is_better: bool | None) -> None:
    """Check that the direction of a column is given if a low number is good by its name.

    Raises:
        ConfigError: It is not.
    """
    words = name_words(column)
    if lower_is_better is None and (words & _LOW or any(word.endswith(_LOW_ENDINGS) for word in words)):
        raise ConfigError(
            f"the name of the column {column!r} suggests that a low number is good",
            expected="its direction",
            fix="add --lower-is-better, or --higher-is-better",
            field="lower_is_better",
        )


def _has_texts(system: Answers) -> bool:
    return any(row.reference or row.output for row in system.rows)


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
        reads_answers=False,
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
    marks = ascii_uppercase if len(short) <= len(ascii_uppercase) else range(1, len(short) + 1)
    return [f"{name} ({mark})" for name, mark in zip(short, marks, strict=False)]
