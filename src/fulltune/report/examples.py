"""Compare rows before and after tuning: fixed, broken and unchanged ones.

A first pass keeps one number per row and system; a second pass keeps the few rows that are shown. Memory does not grow
with the length of the texts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fulltune.records.run import Prediction
from fulltune.report.display import as_float, in_order, number, system_label
from fulltune.runtime.graphemes import clip

#: Systems that count as "before" if the best baseline has no answers, in order of preference.
_BEFORE = ("zero_shot", "few_shot", "tfidf", "majority")
#: Characters of a text that the page keeps, and length above which it is folded.
KEPT, FOLDED = 1500, 240
#: Number of continuations that the report of a causal-lm run shows.
CONTINUATIONS = 8

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def token_f1(output: str, reference: str) -> float:
    """Return the F1 of the two bags of lowercase words, as in SQuAD (Rajpurkar et al. 2016), 0 to 1.

    Two empty texts give 1. A CJK character counts as a word.
    """
    ours = Counter(_TOKEN.findall(output.lower()))
    theirs = Counter(_TOKEN.findall(reference.lower()))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


@dataclass(frozen=True)
class Measure:
    """Rule that decides whether a row improved.

    Attributes:
        name: Name on the page.
        of: Function from a prediction to a number; NaN if it cannot be judged.
        threshold: Change above which a row counts as fixed or broken.
        lower: True if lower is better.
        explained: The rule in one sentence.
    """

    name: str
    of: Callable[[Prediction], float]
    threshold: float
    lower: bool
    explained: str


def _right(prediction: Prediction) -> float:
    if "match" in prediction.values and prediction.values["match"] is None:
        return math.nan  # the reference query failed, so the answer cannot be judged
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
    nll = as_float(prediction.values.get("nll"))
    size = as_float(prediction.values.get("bytes"))
    return nll / size / math.log(2) if size > 0 else math.nan


RIGHT = Measure("right", _right, 0.5, False, "A row is correct if the output equals the reference.")
MATCH = Measure("right", _right, 0.5, False, "A row is correct if its query returns the same result as the reference.")
OVERLAP = Measure(
    "token F1",
    _overlap,
    0.1,
    False,
    "A row counts as fixed or broken if its token F1 with the reference changes by more than 0.1.",
)
BITS = Measure(
    "bits per byte",
    _bits,
    0.02,
    True,
    "A row counts as fixed or broken if its bits per byte (lower is better) change by more than 0.02.",
)


def measure_for(task: str, prediction: Prediction) -> Measure:
    """Return the rule for a task: equality, result of the query, bits per byte, or overlap of words."""
    if task == "text2sql" and "match" in prediction.values:
        return MATCH
    if task in ("classification", "text2sql") or isinstance(prediction.reference, tuple):
        return RIGHT
    if task == "causal-lm" and "nll" in prediction.values:
        return BITS
    return OVERLAP


@dataclass
class Survey:
    """Result of the first pass over the predictions.

    Attributes:
        measure: The rule for rows; None if there are no predictions.
        scores: Number by system and row id.
        continued: Ids of rows with a continuation by the tuned model.
        queries: Counts of ``rows``, ``executes``, ``doubtful`` and ``error: …`` by system (text2sql).
    """

    measure: Measure | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    continued: list[str] = field(default_factory=list)
    queries: dict[str, Counter[str]] = field(default_factory=dict)


def survey(task: str, predictions: Iterable[Prediction]) -> Survey:
    """Run the first pass over the predictions."""
    result = Survey()
    for prediction in predictions:
        result.measure = result.measure or measure_for(task, prediction)
        result.scores.setdefault(prediction.system, {})[prediction.id] = result.measure.of(prediction)
        if prediction.system == "tuned" and prediction.values.get("continuation"):
            result.continued = [*result.continued, prediction.id][:CONTINUATIONS]
        if "executes" in prediction.values:
            _count_query(result.queries.setdefault(prediction.system, Counter()), prediction)
    return result


def _count_query(counts: Counter[str], prediction: Prediction) -> None:
    counts["rows"] += 1
    counts["executes"] += bool(prediction.values["executes"])
    counts["doubtful"] += bool(prediction.values.get("warning"))
    error = str(prediction.values.get("error") or "")
    if error:
        # Count the kind of the error: the text after the colon names columns of one query.
        counts["error: " + clip(error.partition(":")[0].strip(), 80)] += 1


@dataclass(frozen=True)
class Grouped:
    """Row ids by their change; ``kept_right`` counts the unchanged rows that were correct before and after."""

    before: str
    fixed: list[str]
    broken: list[str]
    unchanged: list[str]
    kept_right: int

    def ids(self) -> Mapping[str, list[str]]:
        return {"fixed": self.fixed, "broken": self.broken, "unchanged": self.unchanged}


def group(result: Survey, best: str | None = None) -> Grouped | None:
    """Group all rows that both the tuned model and a baseline answered, or return None if there are none.

    The baseline is ``best`` if it has answers that can be judged.
    """
    judged = {name for name, rows in result.scores.items() if not all(map(math.isnan, rows.values()))}
    before = next((name for name in (best, *_BEFORE) if name in judged), None)
    tuned = result.scores.get("tuned")
    measure = result.measure
    if before is None or tuned is None or measure is None:
        return None
    grouped = Grouped(before, [], [], [], 0)
    kept_right = 0
    for row, old in result.scores[before].items():
        gain = (tuned.get(row, math.nan) - old) * (-1 if measure.lower else 1)
        if math.isnan(gain):
            continue
        name = "unchanged"
        if abs(gain) > measure.threshold:
            name = "fixed" if gain > 0 else "broken"
        grouped.ids()[name].append(row)
        kept_right += name == "unchanged" and old == 1
    return Grouped(before, grouped.fixed, grouped.broken, grouped.unchanged, kept_right)


def choose(ids: Mapping[str, Sequence[str]], total: int) -> dict[str, list[str]]:
    """Choose up to ``total`` ids, the same number per group if possible, evenly spaced over the rows of each."""
    left = total
    chosen = {}
    for index, name in enumerate(sorted(ids, key=lambda name: len(ids[name]))):
        rows = ids[name]
        take = min(len(rows), left // (len(ids) - index))
        chosen[name] = [rows[i * len(rows) // take] for i in range(take)]
        left -= take
    return chosen


def gather(predictions: Iterable[Prediction], wanted: set[str]) -> dict[str, dict[str, Prediction]]:
    """Run the second pass: return predictions by row id and system, only for the wanted ids."""
    rows: dict[str, dict[str, Prediction]] = {}
    for prediction in predictions if wanted else ():
        if prediction.id in wanted:
            rows.setdefault(prediction.id, {})[prediction.system] = prediction
    return rows


@dataclass(frozen=True)
class Text:
    """A text for the page, cut to :data:`KEPT` characters; ``head`` is its beginning if it is folded."""

    body: str
    head: str = ""
    hidden: int = 0


def text(value: str | tuple[str, ...]) -> Text:
    """Return a text for the page."""
    complete = as_text(value)
    body = clip(complete, KEPT)
    head = clip(body, FOLDED).rsplit(" ", 1)[0].strip() if len(complete) > FOLDED else ""
    return Text(body, head, len(complete) - len(body))


#: The character that a decoder writes for bytes that are no character, such as the first half of one.
_HALF = "\ufffd"


def answer_text(prediction: Prediction, value: str | tuple[str, ...]) -> Text:
    """Return the answer of a system, without the half character at the end of one that the limit of tokens cut off."""
    is_cut = prediction.values.get("capped") and isinstance(value, str)
    return text(value.rstrip(_HALF)) if is_cut and isinstance(value, str) else text(value)


def as_text(value: str | tuple[str, ...]) -> str:
    """Return a value as one line of text."""
    return value if isinstance(value, str) else ", ".join(value)


@dataclass(frozen=True)
class Answer:
    """Answer of one system.

    Attributes:
        label: Name of the system.
        text: The answer.
        judged: The result of the rule in words.
        right: The result; None if the rule does not distinguish correct and incorrect answers.
        warning: What makes the answer doubtful, whatever the rule says.
    """

    label: str
    text: Text
    judged: str
    right: bool | None
    warning: str = ""


@dataclass(frozen=True)
class Case:
    """One row of the evaluation set with its answers."""

    id: str
    input: Text
    answers: tuple[Answer, ...]
    reference: Text | None


@dataclass(frozen=True)
class Group:
    """Rows of the page under one heading."""

    name: str
    count: int
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Examples:
    """Contents of the section: the rule, the system that counts as "before", and the groups with counts of all rows.

    ``numbers`` is True if rows have scores but no answers (likelihoods): they are shown as a table instead of cards.
    """

    explained: str
    numbers: bool
    before: str
    groups: tuple[Group, ...]
    kept_right: int | None


@dataclass(frozen=True)
class Gallery:
    """Grouped examples, and continuations of the same openings; either may be missing."""

    examples: Examples | None
    continuations: tuple[Case, ...]
    survey: Survey


def gallery(task: str, predictions: Iterable[Prediction], total: int, best: str | None = None) -> Gallery:
    """Run both passes. A one-shot iterator is read into memory first.

    Args:
        task: Task of the run.
        predictions: Predictions of all systems.
        total: Number of rows that are shown.
        best: The best baseline, which the tuned model is compared with.
    """
    rows = list(predictions) if isinstance(predictions, Iterator) else predictions
    result = survey(task, rows)
    grouped = group(result, best)
    chosen = choose(grouped.ids(), total) if grouped else {}
    wanted = {row for ids in chosen.values() for row in ids} | set(result.continued)
    kept = gather(rows, wanted)
    continuations = tuple(_continuation(kept[row]) for row in result.continued)
    measure = result.measure
    if grouped is None or measure is None:
        return Gallery(None, continuations, result)
    groups = tuple(
        Group(name, len(ids), tuple(_case(kept[row], measure, grouped.before) for row in chosen[name]))
        for name, ids in grouped.ids().items()
    )
    kept_right = grouped.kept_right if measure in (RIGHT, MATCH) else None
    before = system_label(grouped.before) + (", the best baseline" if grouped.before == best else "")
    examples = Examples(measure.explained, measure is BITS, before, groups, kept_right)
    return Gallery(examples, continuations, result)


def _case(row: Mapping[str, Prediction], measure: Measure, before: str) -> Case:
    first = next(iter(row.values()))
    shown = (row[name] for name in in_order(row) if name in (before, "tuned"))
    answers = tuple(_answer(prediction, measure) for prediction in shown)
    if measure is BITS:
        return Case(first.id, text(first.input or first.reference), answers, None)
    return Case(first.id, text(first.input), answers, text(first.reference))


def _answer(prediction: Prediction, measure: Measure) -> Answer:
    score = measure.of(prediction)
    label = system_label(prediction.system)
    if measure in (RIGHT, MATCH):
        judged = "right" if score else "wrong"
        warning = str(prediction.values.get("warning") or "")
        return Answer(label, answer_text(prediction, prediction.output), judged, bool(score), warning)
    if measure is BITS:
        return Answer(label, Text(number(score)), "", None)
    return Answer(label, answer_text(prediction, prediction.output), f"{measure.name} {number(score)}", None)


def _continuation(row: Mapping[str, Prediction]) -> Case:
    """Return the continuations of one opening by all systems."""
    first = row["tuned"]
    answers = tuple(
        Answer(system_label(name), answer_text(row[name], str(row[name].values["continuation"])), "", None)
        for name in in_order(row)
        if row[name].values.get("continuation") is not None
    )
    reference = first.values.get("continuation_reference")
    opening = str(first.values.get("opening") or first.input)
    return Case(first.id, text(opening), answers, text(str(reference)) if reference else None)
