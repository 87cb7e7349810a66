"""Read the predictions of any tool: a file with ``id``, ``target`` and ``prediction`` or ``score``, or a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fulltune.data.read import read_rows
from fulltune.errors import ConfigError, DataError, Problem, closest
from fulltune.evaluation.related_rows import Related, related
from fulltune.metrics.run_comparison import predictions_of
from fulltune.records.run import Prediction, read_record
from fulltune.runtime.rows_file import as_source
from fulltune.store.registry.registry import evidence

#: Names of columns by role, the first of them is the usual one.
NAMES = {
    "id": ("id", "row_id", "example_id", "uid"),
    "target": ("target", "reference", "label", "gold", "expected"),
    "prediction": ("prediction", "output", "predicted", "pred", "answer"),
    "score": ("score",),
}

#: Columns of answers that a run or a judge wrote; their column ``group`` names groups without being asked for.
_SAVED = frozenset(Prediction.model_fields)

#: File types; a name with another ending is the name of a run.
_FILES = frozenset({".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx"})

#: Largest absolute score: intervals need sums of squares.
_LARGEST_SCORE = 1e100

#: Problems of one kind that are listed.
_LISTED = 3


@dataclass(frozen=True)
class Answers:
    """The answers of one system.

    Attributes:
        name: Name in messages.
        rows: One prediction per row; a numeric score is ``values["score"]``.
        columns: Columns of the file; empty for a run.
        metric: The deciding metric of a run; empty for a file.
        labels: Labels of a run.
        multi_label: True if rows may have several labels.
        left_out: Rows that a run leaves out of its scores.
        answered: False if a file has no targets or no predictions, or nothing but empty ones.
        related: Column of a file by which rows belong together, if no column of groups was named.
    """

    name: str
    rows: tuple[Prediction, ...]
    columns: tuple[str, ...] = ()
    metric: str = ""
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    left_out: frozenset[str] = field(default_factory=frozenset)
    answered: bool = True
    related: Related | None = None


def read_answers(
    source: Any,
    out: str | Path = "runs",
    *,
    columns: Mapping[str, str] | None = None,
    score: str = "",
    group: str = "",
    of_values: bool = False,
) -> Answers:
    """Read the answers of one system.

    Args:
        source: A file, rows in memory, or a run or version; ``RUN#SYSTEM`` names one of its baselines. Answers that
            were read before are returned.
        out: The runs folder.
        columns: Names of columns by role (:data:`NAMES`), if they are not the usual ones.
        score: A column of numbers that is the score of each row; empty to find out.
        group: The column that names the group of each row.
        of_values: True for a metric of other columns, such as ``nll`` and ``bytes``: no answers are needed.

    Raises:
        DataError: The file cannot be read, or its rows have no ids, answers or numbers; lists all problems.
        StoreError: There is no such run.
    """
    if isinstance(source, Answers):
        return source
    if isinstance(source, str | Path) and not _is_file(source):
        return _of_run(str(source), out)
    name = str(source) if isinstance(source, str | Path) else "rows in memory"
    found = read_rows(str(as_source(source, "rows")))
    if found.problems:
        raise DataError(found.problems)
    roles = _roles(name, found.columns, dict(columns or {}), score, group, of_values)
    read, problems = [], list[Problem]()
    for row, where in zip(found.rows, found.places, strict=True):
        try:
            read.append(_prediction(row, roles, where))
        except _Bad as bad:
            problems.append(bad.problem)
    problems += _repeated(read, name)
    if not read and not problems:
        problems.append(Problem("the file has no rows", "a row per answer", where=name))
    if problems:
        raise DataError(_shortened(problems, name))
    several = any(_is_list(row.reference) for row in read)
    answered = roles.keys() >= {"target", "prediction"} and any(row.reference or row.output for row in read)
    by = None if "group" in roles else related([row.id for row in read], found.rows, found.columns, roles.values())
    return Answers(name, tuple(read), found.columns, multi_label=several, answered=answered, related=by)


class _Bad(Exception):
    def __init__(self, found: str, expected: str, fix: str, where: str, column: str) -> None:
        self.problem = Problem(found, expected, fix, where, column)
        super().__init__(found)


def _is_file(source: str | Path) -> bool:
    path = Path(str(source).split("#")[0])
    return path.is_file() or (path.suffix.lower() in _FILES and not path.is_dir())


def _of_run(name: str, out: str | Path) -> Answers:
    run, _, system = name.partition("#")
    folder = evidence(run, out)
    record = read_record(folder)
    return Answers(
        name=record.run_id + (f"#{system}" if system else ""),
        rows=tuple(predictions_of(folder, system or "tuned")),
        metric=record.metric,
        labels=tuple(record.details.get("labels", ())),
        multi_label=bool(record.details.get("multi_label", False)),
        left_out=record.left_out,
    )


def _roles(
    name: str, columns: Sequence[str], named: dict[str, str], score: str, group: str, of_values: bool
) -> dict[str, str]:
    """Return the column of each role.

    Raises:
        DataError: A column is missing.
    """
    wanted = named | ({"score": score} if score else {}) | ({"group": group} if group else {})
    if unknown := sorted(set(wanted) - {*NAMES, "group"}):
        raise ConfigError(
            f"unknown roles of columns: {', '.join(unknown)}", expected=f"some of {', '.join(NAMES)}", field="columns"
        )
    problems = [_missing(column, column, columns, name) for column in wanted.values() if column not in columns]
    roles = ({"group": "group"} if set(columns) >= _SAVED else {}) | wanted
    for role, usual in NAMES.items():
        match = next((column for column in usual if column in columns), None)
        if role not in roles and match:
            roles[role] = match
    if "target" in roles and roles["target"] == roles.get("prediction"):
        found = f"the column {roles['target']!r} is both target and prediction: every answer would be right"
        problems.append(Problem(found, "two columns", "name the column of the answers", name, "prediction"))
    if "id" not in roles:
        problems.append(_missing("id", "id", columns, name, "a column `id` that names the row in all files"))
    if of_values:
        pass
    elif not {"prediction", "score"} & set(roles):
        problems.append(_missing("prediction", "prediction", columns, name, "a column `prediction`, or `score`"))
    elif "prediction" in roles and "score" not in roles and "target" not in roles:
        problems.append(_missing("target", "target", columns, name, "a column `target` with the expected answers"))
    if problems:
        raise DataError(problems)
    return roles


def _missing(role: str, column: str, columns: Sequence[str], where: str, expected: str = "") -> Problem:
    near = closest(column, columns)
    advice = f"did you mean {near!r}? " if near else ""
    fix = f"{advice}name it with --column {role}=NAME" if role in NAMES else advice or "name an existing column"
    return Problem(
        f"there is no column {column!r}; the columns are {', '.join(columns) or 'none'}",
        expected or f"a column {column!r}",
        fix.strip(),
        where,
        column,
    )


def _prediction(row: Mapping[str, Any], roles: Mapping[str, str], where: str) -> Prediction:
    values = {role: row.get(column) for role, column in roles.items()}
    if _is_empty(values["id"]):
        raise _Bad("a row has no id", "a text or a number", "name every row", where, roles["id"])
    kept = {key: value for key, value in row.items() if isinstance(value, int | float | bool) or value is None}
    if isinstance(own := row.get("values"), Mapping):
        kept |= own
    if "score" in roles:
        kept["score"] = _number(values["score"], roles["score"], where)
    answers = {}
    for role in ("target", "prediction"):
        answers[role] = _answer(values.get(role))
        if role in roles and answers[role] is None:
            fix = "write an empty text for no answer" if role == "prediction" else "leave the row out of all files"
            raise _Bad(f"a row has no {role}", "a text, a number or a list of labels", fix, where, roles[role])
    group = "" if "group" not in roles or _is_empty(values["group"]) else _text(values["group"])
    return Prediction(
        system="",
        id=_text(values["id"]),
        input="",
        reference=answers["target"] or "",
        output=answers["prediction"] or "",
        values=kept,
        group=group,
    )


def _number(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        fix = "score every row in all files, or leave it out of all of them"
        raise _Bad(f"the score {value!r} is not a finite number", "a number", fix, where, column)
    if abs(number) > _LARGEST_SCORE:
        found = f"the score {value!r} is too large for sums of squares"
        raise _Bad(found, f"numbers up to {_LARGEST_SCORE:g}", "divide all scores by the same number", where, column)
    return number


def _answer(value: Any) -> str | tuple[str, ...] | None:
    if _is_list(value):
        return tuple(sorted(_text(part) for part in value))
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else _text(value)


def _text(value: Any) -> str:
    """Return a value as text such that 1, 1.0 and ``"1"`` are equal, whatever the file type."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    head, dot, tail = text.partition(".")
    return head if dot and tail.strip("0") == "" and head.lstrip("-").isdigit() else text


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _repeated(rows: Sequence[Prediction], name: str) -> list[Problem]:
    seen, repeated = set[str](), dict[str, None]()
    for row in rows:
        if row.id in seen:
            repeated[row.id] = None
        seen.add(row.id)
    if not repeated:
        return []
    listed = ", ".join(map(repr, list(repeated)[:_LISTED])) + ("" if len(repeated) <= _LISTED else ", …")
    found = f"{len(repeated)} id{'s are' if len(repeated) > 1 else ' is'} used by several rows: {listed}"
    return [Problem(found, "one row per id", "keep one answer per row", name, "id")]


def _shortened(problems: Sequence[Problem], name: str) -> list[Problem]:
    """Return the first problems of each kind, and how many more there are."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.field + problem.expected, []).append(problem)
    listed = [problem for kind in kinds.values() for problem in kind[:_LISTED]]
    rest = len(problems) - len(listed)
    return listed if not rest else [*listed, Problem(f"{rest} more problems of these kinds", where=name)]
