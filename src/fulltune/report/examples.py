"""Rows side by side: what tuning fixed, what it broke, what it left as it was.

One pass keeps one number a row and system; a second pass keeps the few rows that are shown. Memory does not grow with
their texts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fulltune.records.run import Prediction
from fulltune.report.display import as_float, in_order, number, system_label

#: Systems that are shown side by side; the first two present in this order are "before".
_BEFORE = ("zero_shot", "few_shot", "tfidf", "majority")
_SHOWN = ("zero_shot", "few_shot", "tuned")
#: Characters of a text that the page keeps, and above which it is folded.
KEPT, FOLDED = 1500, 240
#: Continuations shown of a causal-lm run.
CONTINUATIONS = 8

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def token_f1(output: str, reference: str) -> float:
    """F1 of the two bags of lower-cased words, as SQuAD scores answers (Rajpurkar et al. 2016); two empty texts give 1.

    A CJK character counts as a word.
    """
    ours, theirs = Counter(_TOKEN.findall(output.lower())), Counter(_TOKEN.findall(reference.lower()))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


@dataclass(frozen=True)
class Measure:
    """How one row is judged.

    Attributes:
        name: As the page calls it.
        of: One prediction → a number, NaN when it cannot be judged.
        threshold: The change above which a row counts as fixed or broken.
        lower: Whether lower is better.
        explained: The rule in a sentence.
    """

    name: str
    of: Callable[[Prediction], float]
    threshold: float
    lower: bool
    explained: str


def _right(prediction: Prediction) -> float:
    if "match" in prediction.values and prediction.values["match"] is None:
        return math.nan  # the reference query failed: nobody knows
    for key in ("match", "correct", "exact"):
        if isinstance(prediction.values.get(key), bool | int | float):
            return float(bool(prediction.values[key]))
    if isinstance(prediction.reference, tuple):
        output = prediction.output if isinstance(prediction.output, tuple) else (prediction.output,)
        return float(set(output) == set(prediction.reference))
    return float(as_text(prediction.output).strip() == prediction.reference.strip())


def _overlap(prediction: Prediction) -> float:
    return token_f1(as_text(prediction.output), as_text(prediction.reference))


def _bits(prediction: Prediction) -> float:
    nll, size = as_float(prediction.values.get("nll")), as_float(prediction.values.get("bytes"))
    return nll / size / math.log(2) if size > 0 else math.nan


RIGHT = Measure("right", _right, 0.5, False, "A row is right when the output equals the reference.")
MATCH = Measure("right", _right, 0.5, False, "A row is right when its query gives the reference's result.")
OVERLAP = Measure(
    "token F1",
    _overlap,
    0.1,
    False,
    "A row counts as fixed or broken when its token F1 with the reference moves by over 0.1.",
)
BITS = Measure(
    "bits per byte",
    _bits,
    0.02,
    True,
    "A row counts as fixed or broken when its bits per byte (lower is better) move by over 0.02.",
)


def measure_for(task: str, prediction: Prediction) -> Measure:
    """The rule for a task: equality, result of the query, bits per byte, or overlap of words."""
    if task == "text2sql" and "match" in prediction.values:
        return MATCH
    if task in ("classification", "text2sql") or isinstance(prediction.reference, tuple):
        return RIGHT
    if task == "causal-lm" and "nll" in prediction.values:
        return BITS
    return OVERLAP


@dataclass
class Survey:
    """What one pass over the predictions leaves.

    Attributes:
        measure: How rows are judged; None when there are no predictions.
        scores: System → row id → number.
        continued: Ids of rows with a continuation by the tuned model.
        queries: System → counts of ``rows``, ``executes`` and ``error: …`` (text2sql).
    """

    measure: Measure | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    continued: list[str] = field(default_factory=list)
    queries: dict[str, Counter[str]] = field(default_factory=dict)


def survey(task: str, predictions: Iterable[Prediction]) -> Survey:
    """The first pass."""
    found = Survey()
    for prediction in predictions:
        found.measure = found.measure or measure_for(task, prediction)
        found.scores.setdefault(prediction.system, {})[prediction.id] = found.measure.of(prediction)
        if prediction.system == "tuned" and prediction.values.get("continuation"):
            found.continued = [*found.continued, prediction.id][:CONTINUATIONS]
        if "executes" in prediction.values:
            _count_query(found.queries.setdefault(prediction.system, Counter()), prediction)
    return found


def _count_query(counts: Counter[str], prediction: Prediction) -> None:
    counts["rows"] += 1
    counts["executes"] += bool(prediction.values["executes"])
    error = str(prediction.values.get("error") or "")
    if error:
        # Only the kind of the error: what follows the colon names one query's own columns.
        counts["error: " + error.partition(":")[0].strip()[:80]] += 1


@dataclass(frozen=True)
class Grouped:
    """Row ids by what happened to them; ``kept_right`` counts the unchanged rows that were right before and after."""

    before: str
    fixed: list[str]
    broken: list[str]
    unchanged: list[str]
    kept_right: int

    def ids(self) -> Mapping[str, list[str]]:
        return {"fixed": self.fixed, "broken": self.broken, "unchanged": self.unchanged}


def group(found: Survey) -> Grouped | None:
    """Sort all rows that both the tuned model and a baseline answered; None when there is nothing to compare."""
    before = next((name for name in _BEFORE if name in found.scores), None)
    tuned = found.scores.get("tuned")
    if before is None or tuned is None or found.measure is None:
        return None
    grouped = Grouped(before, [], [], [], 0)
    kept_right = 0
    for row, old in found.scores[before].items():
        gain = (tuned.get(row, math.nan) - old) * (-1 if found.measure.lower else 1)
        if math.isnan(gain):
            continue
        name = (
            "fixed" if gain > found.measure.threshold else "broken" if gain < -found.measure.threshold else "unchanged"
        )
        grouped.ids()[name].append(row)
        kept_right += name == "unchanged" and old == 1
    return Grouped(before, grouped.fixed, grouped.broken, grouped.unchanged, kept_right)


def choose(ids: Mapping[str, Sequence[str]], total: int) -> dict[str, list[str]]:
    """Up to ``total`` ids, an equal share a group as far as it has that many, spread evenly over its rows."""
    left, chosen = total, {}
    for index, name in enumerate(sorted(ids, key=lambda name: len(ids[name]))):
        rows = ids[name]
        take = min(len(rows), left // (len(ids) - index))
        chosen[name] = [rows[i * len(rows) // take] for i in range(take)]
        left -= take
    return chosen


def gather(predictions: Iterable[Prediction], wanted: set[str]) -> dict[str, dict[str, Prediction]]:
    """The second pass: row id → system → prediction, for the wanted ids only."""
    rows: dict[str, dict[str, Prediction]] = {}
    for prediction in predictions if wanted else ():
        if prediction.id in wanted:
            rows.setdefault(prediction.id, {})[prediction.system] = prediction
    return rows


@dataclass(frozen=True)
class Text:
    """A text for the page: all of it, or its first :data:`KEPT` characters; ``head`` is set when it is to be folded."""

    body: str
    head: str = ""
    cut: int = 0


def text(value: str | tuple[str, ...]) -> Text:
    whole = as_text(value)
    body = whole[:KEPT]
    head = body[:FOLDED].rsplit(" ", 1)[0].strip() if len(whole) > FOLDED else ""
    return Text(body, head, len(whole) - len(body))


def as_text(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


@dataclass(frozen=True)
class Answer:
    """One system's answer; ``right`` is None where right and wrong are not the question."""

    label: str
    text: Text
    judged: str
    right: bool | None


@dataclass(frozen=True)
class Case:
    id: str
    input: Text
    answers: tuple[Answer, ...]
    reference: Text | None


@dataclass(frozen=True)
class Group:
    name: str
    count: int
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Examples:
    """All that the section shows: the rule, the system that stands for "before", the groups with all rows counted.

    ``numbers`` says that rows have scores and no answers to read (likelihoods): a table serves better than cards.
    """

    explained: str
    numbers: bool
    before: str
    groups: tuple[Group, ...]
    kept_right: int | None


@dataclass(frozen=True)
class Gallery:
    """Examples sorted into groups and continuations of the same openings; either may be missing."""

    examples: Examples | None
    continuations: tuple[Case, ...]
    survey: Survey


def gallery(task: str, predictions: Iterable[Prediction], total: int) -> Gallery:
    """Both passes. An iterator, which allows one pass only, is read into memory first."""
    rows = list(predictions) if isinstance(predictions, Iterator) else predictions
    found = survey(task, rows)
    grouped = group(found)
    chosen = choose(grouped.ids(), total) if grouped else {}
    wanted = {row for rows_ in chosen.values() for row in rows_} | set(found.continued)
    kept = gather(rows, wanted)
    continuations = tuple(_continuation(kept[row]) for row in found.continued)
    if grouped is None or found.measure is None:
        return Gallery(None, continuations, found)
    groups = tuple(
        Group(name, len(ids), tuple(_case(kept[row], found.measure, grouped.before) for row in chosen[name]))
        for name, ids in grouped.ids().items()
    )
    kept_right = grouped.kept_right if found.measure in (RIGHT, MATCH) else None
    before = system_label(grouped.before)
    examples = Examples(found.measure.explained, found.measure is BITS, before, groups, kept_right)
    return Gallery(examples, continuations, found)


def _case(row: Mapping[str, Prediction], measure: Measure, before: str) -> Case:
    first = next(iter(row.values()))
    shown = (row[name] for name in in_order(row) if name in (before, *_SHOWN))
    answers = tuple(_answer(prediction, measure) for prediction in shown)
    if measure is BITS:
        return Case(first.id, text(first.input or first.reference), answers, None)
    return Case(first.id, text(first.input), answers, text(first.reference))


def _answer(prediction: Prediction, measure: Measure) -> Answer:
    score = measure.of(prediction)
    label = system_label(prediction.system)
    if measure in (RIGHT, MATCH):
        return Answer(label, text(prediction.output), "right" if score else "wrong", bool(score))
    if measure is BITS:
        return Answer(label, Text(number(score)), "", None)
    return Answer(label, text(prediction.output), f"{measure.name} {number(score)}", None)


def _continuation(row: Mapping[str, Prediction]) -> Case:
    """The same opening continued by every system that did so."""
    first = row["tuned"]
    answers = tuple(
        Answer(system_label(name), text(str(row[name].values["continuation"])), "", None)
        for name in in_order(row)
        if row[name].values.get("continuation") is not None
    )
    reference = first.values.get("continuation_reference")
    opening = str(first.values.get("opening") or first.input)
    return Case(first.id, text(opening), answers, text(str(reference)) if reference else None)
