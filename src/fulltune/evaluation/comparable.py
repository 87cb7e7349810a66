"""Check that answers can be compared: the same rows, targets and groups, and scores of the same amount of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fulltune.data.findings import rows
from fulltune.errors import DataError, Problem, abridged
from fulltune.evaluation.prediction_files import Answers
from fulltune.metrics import known
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.ratios import numbers
from fulltune.records.run import Prediction

#: Rows of a kind that a message lists.
_LISTED = 3

#: Mean of scores up to 1 from which they may be fractions; smaller ones may be percentages too.
_LEAST_FRACTION = 0.05

#: Sizes that likelihoods are divided by, and by what fraction their sums may differ between systems: tokenizers begin
#: to predict at different bytes of a text, but tokens of different tokenizers are different units.
_SIZES = {"bits_per_byte": ("bytes", 0.1), "perplexity": ("tokens", 0.0)}


def check_answered(systems: Sequence[Answers], metric: Metric) -> None:
    """Check that files have the answers that a metric reads: without any, every row would be right.

    Raises:
        DataError: Some files have no targets or no predictions.
    """
    found = f"there are no targets and predictions, which {metric.name} is computed from"
    fix = "choose a column of numbers with --metric, or write both columns"
    problems = [
        Problem(found, "columns `target` and `prediction`", fix, system.name, "prediction")
        for system in systems
        if metric.reads_answers and not system.answered
    ]
    if problems:
        raise DataError(problems)


def check_rows(systems: Sequence[Answers], metric: Metric) -> None:
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
        differ = [key for key, row in first.items() if key in own and _differ(row, own[key], metric)]
        problems += _other_targets(differ, first, own, systems[0].name, system.name)
    problems += _other_groups(systems)
    if problems:
        raise DataError(problems)


def check_sizes(systems: Sequence[Answers], metric: Metric) -> None:
    """Check that likelihoods are those of the same text, in the same units.

    Raises:
        DataError: A size is below 0, or the systems differ in their sums.
    """
    if metric.name not in _SIZES:
        return
    key, tolerance = _SIZES[metric.name]
    totals, problems = list[float](), list[Problem]()
    for system in systems:
        values = [pair for row in system.rows if (pair := numbers(row, "nll", key)) is not None]
        if any((pair < 0).any() for pair in values):
            problems.append(Problem(f"nll or {key} is below 0", "0 or more", where=system.name, field=key))
        totals.append(float(sum(pair[1] for pair in values)))
        if abs(totals[-1] - totals[0]) > tolerance * totals[0]:
            found = f"likelihoods of {totals[-1]:,.0f} {key}; those of {systems[0].name} are of {totals[0]:,.0f}"
            fix = "score the same text" + (", or use bits_per_byte" if key == "tokens" else "")
            problems.append(Problem(found, f"as many {key} in all files", fix, system.name, key))
    if problems:
        raise DataError(problems)


def check_units(systems: Sequence[Answers], metric: Metric) -> None:
    """Check that a column of numbers is not a fraction in one file and a percentage in another.

    Raises:
        DataError: It looks so.
    """
    if metric.name in known():
        return
    scores = [[float(row.values["score"]) for row in system.rows] for system in systems]
    means = [sum(own) / len(own) for own in scores]
    fractions = [i for i, own in enumerate(scores) if min(own) >= 0 and max(own) <= 1 and means[i] >= _LEAST_FRACTION]
    for one in fractions:
        for other, own in enumerate(scores):
            least, most = (100 * means[one] * factor for factor in (0.5, 2))
            if min(own) >= 0 and 1 < max(own) <= 100 and least <= means[other] <= most:
                found = f"{metric.name} is {means[other]:.3g} on average, {means[one]:.3g} in {systems[one].name}"
                expected, fix = "the same unit in all files, not fractions and percentages", "divide percentages by 100"
                raise DataError(found, expected=expected, fix=fix, where=systems[other].name, field=metric.name)


def size_difference(a: Answers, b: Answers, metric: Metric) -> float:
    """Return how many bytes more the likelihoods of ``b`` are of, as a fraction of those of ``a``; 0 for other metrics.

    Bits per byte differ by as much if one of them counts other bytes, so that no smaller difference is a finding.
    """
    if metric.name != "bits_per_byte":
        return 0.0
    one, two = (_total(system, "bytes") for system in (a, b))
    return (two - one) / min(one, two) if min(one, two) > 0 else 0.0


def _total(system: Answers, key: str) -> float:
    rows = (numbers(row, "nll", key) for row in system.rows if row.id not in system.left_out)
    return float(sum(pair[1] for pair in rows if pair is not None))


def on_common_rows(systems: Sequence[Answers], scored: Sequence[Accumulator], metric: Metric) -> list[Accumulator]:
    """Return the systems on the rows that a metric applies to in all or in none; runs leave the others out.

    Raises:
        DataError: A file has others: a system must not choose the rows that it is scored on.
    """
    applies = [{row for row, has in zip(one.ids, one.statistics(metric.name)[1], strict=True) if has} for one in scored]
    uneven = set[str]().union(*applies) - set[str].intersection(*applies)
    problems = list[Problem]()
    for system, own in zip(systems, applies, strict=True):
        if (missing := uneven - own) and any(one.columns for one in systems):
            listed = abridged([repr(row) for row in sorted(missing)], _LISTED)
            found = f"{rows(len(missing), 'have')} no {metric.name} here, but in other files: {listed}"
            fix = "score every row in all files, or leave it out of all of them"
            problems.append(Problem(found, "the same rows in all files", fix, system.name))
    if problems:
        raise DataError(problems)
    return [one.without(uneven) for one in scored]


def with_groups(systems: Sequence[Answers]) -> list[Answers]:
    """Return the systems with groups in all if one has any; those of several are the same."""
    groups = next(({row.id: row.group for row in one.rows} for one in systems if _has_groups(one)), None)
    if groups is None:
        return list(systems)
    return [
        replace(one, rows=tuple(row.model_copy(update={"group": groups[row.id]}) for row in one.rows))
        for one in systems
    ]


def _other_groups(systems: Sequence[Answers]) -> list[Problem]:
    first, *others = [one for one in systems if _has_groups(one)] or [systems[0]]
    groups, problems = {row.id: row.group for row in first.rows}, list[Problem]()
    for system in others:
        differ = [row.id for row in system.rows if row.group != groups.get(row.id, row.group)]
        if differ:
            listed = abridged([repr(row) for row in differ], _LISTED)
            found = f"{rows(len(differ), 'be')} in other groups than in {first.name}: {listed}"
            problems.append(Problem(found, "the same groups in all files", where=system.name, field="group"))
    return problems


def _has_groups(system: Answers) -> bool:
    return any(row.group for row in system.rows)


def _differ(a: Prediction, b: Prediction, metric: Metric) -> bool:
    """Return True if the targets differ; files without answers need none, and n-grams continue no text."""
    return a.reference != b.reference and (metric.reads_answers or bool(a.reference and b.reference))


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
