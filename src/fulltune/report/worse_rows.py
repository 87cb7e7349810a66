"""Name the rows that a tuned model answers worse than the base, for its model card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fulltune.records.run import Prediction
from fulltune.report import examples
from fulltune.report.display import system_label
from fulltune.runtime.graphemes import clip

#: Rows that are listed, and characters of each of their texts.
_LISTED, _SHOWN = 5, 100


@dataclass(frozen=True)
class WorseRows:
    """Rows that got worse.

    Attributes:
        before: The system that the tuned model is compared with.
        count, of: Number of rows that got worse, and of all rows that both answered.
        better: Number of rows that got better.
        rule: The condition for a row to count as worse, in words.
        shown: Id, input, expected output, output before and output of the tuned model, for a few of the rows.
    """

    before: str
    count: int
    of: int
    better: int
    rule: str
    shown: tuple[tuple[str, ...], ...]


def worse_rows(task: str, predictions: Iterable[Prediction], left_out: frozenset[str]) -> WorseRows | None:
    """Return the rows that the tuned model answers worse than the base, or than the best known baseline without one.

    Args:
        task: Name of the task.
        predictions: Predictions of all systems; they are read twice.
        left_out: Ids of rows that do not count.

    Returns:
        None if there are no predictions of two systems.
    """
    found = examples.survey(task, (one for one in predictions if one.id not in left_out))
    grouped = examples.group(found)
    if grouped is None or found.measure is None:
        return None
    ids = examples.choose({"broken": grouped.broken}, _LISTED)["broken"]
    rows = examples.gather(predictions, set(ids))
    total = len(grouped.fixed) + len(grouped.broken) + len(grouped.unchanged)
    return WorseRows(
        system_label(grouped.before),
        len(grouped.broken),
        total,
        len(grouped.fixed),
        found.measure.explained,
        tuple(_shown(name, rows[name], grouped.before) for name in ids),
    )


def _shown(name: str, answers: dict[str, Prediction], before: str) -> tuple[str, ...]:
    old, new = answers[before], answers["tuned"]
    return (name, *(_short(value) for value in (new.input, new.reference, old.output, new.output)))


def _short(value: str | tuple[str, ...]) -> str:
    text = examples.as_text(value)
    return text if len(text) <= _SHOWN else f"{clip(text, _SHOWN)} …"
