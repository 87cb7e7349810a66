"""Run reference queries before training: rows whose reference query fails cannot be scored."""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from fulltune.data.findings import UNSCORED_KIND, Finding, some
from fulltune.errors import DataError, abridged, did_you_mean
from fulltune.tasks.base import Example
from fulltune.tasks.text2sql.execution import Result, printable
from fulltune.tasks.text2sql.lexer import tokens

#: Seconds for which reference queries of a split that is not scored are run.
SECONDS = 60.0
#: Such queries are run in rounds of at most this many, evenly spaced over the rows, so that those reached are a sample.
ROUND = 1000
#: Number of queries stopped at the time limit after which the check of such a split ends.
STOPPED = 10
#: Fraction of the reference queries of eval that may fail: beyond it, a table was renamed or the database is another.
TOLERATED = 0.25
#: Maximum number of kinds of errors in a message, and of tables.
_SHOWN, _TABLES = 3, 20
#: The same in a list with the rows of each kind, and rows of one.
_KINDS, _ROWS = 20, 20
#: Functions of SQLite with another result at every call.
_RANDOM = frozenset({"random", "randomblob"})
#: SQLite's message for a missing table.
_MISSING = re.compile(r"no such table: (?:main\.)?(.+)")

Run = Callable[[Example], Result]
Tables = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Check:
    """Result of a check.

    Attributes:
        split: Name of the split.
        rows: Number of its rows.
        run: Number of executed reference queries.
        failed: Failed results by row id.
        databases: Names of their databases by row id.
    """

    split: str
    rows: int
    run: int
    failed: dict[str, Result]
    databases: Mapping[str, str]

    @property
    def is_intolerable(self) -> bool:
        return len(self.failed) > TOLERATED * self.run

    def existing(self, tables: Tables) -> str:
        """Return the tables of the database in which most queries miss one, or an empty text."""
        missing = Counter(
            (self.databases[row], match[1])
            for row, result in self.failed.items()
            if (match := _MISSING.fullmatch(result.error or ""))
        )
        if not missing:
            return ""
        [((db_id, name), _)] = missing.most_common(1)
        known = tables(db_id)
        more = f" and {len(known) - _TABLES} more" if len(known) > _TABLES else ""
        close = did_you_mean(name, known)
        listed = f"the tables of {printable(db_id)} are {', '.join(map(printable, known[:_TABLES]))}{more}"
        return listed + (f" ({close})" if close else "")

    @property
    def kinds(self) -> str:
        """The most frequent errors with their counts."""
        kinds = Counter(str(result.error) for result in self.failed.values())
        names = [f"{error} ({count})" for error, count in kinds.most_common(_SHOWN)]
        return ", ".join(names) + (f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else "")

    @property
    def kinds_with_rows(self) -> str:
        """The errors with the rows of each, the most frequent first."""
        rows = defaultdict[str, list[str]](list)
        for row, result in self.failed.items():
            rows[str(result.error)].append(row)
        ordered = sorted(rows, key=lambda error: -len(rows[error]))
        return abridged([f"{error} ({abridged(rows[error], _ROWS)})" for error in ordered], _KINDS)

    @property
    def fix(self) -> str:
        slow = any(result.limit == "time" for result in self.failed.values())
        large = any(result.limit == "size" for result in self.failed.values())
        advice = ["correct these queries or the databases"]
        advice += ["raise evaluation.sql_seconds"] if slow else []
        advice += ["remove the long values (this limit is fixed)"] if large else []
        return ", or ".join(advice)


def check(split: str, examples: Sequence[Example], run: Run, *, all_rows: bool, seconds: float | None = None) -> Check:
    """Run the reference queries of a split.

    Args:
        split: Name of the split.
        examples: Its rows.
        run: Function that runs the query of a row.
        all_rows: Run all, however long it takes; otherwise stop after ``seconds``, or once many reach the time limit.
        seconds: Wall time, by default :data:`SECONDS`.
    """
    step = 1 if all_rows else -(-len(examples) // ROUND) or 1
    failed: dict[str, Result] = {}
    databases = dict[str, str]()
    count = stopped = 0
    end = math.inf if all_rows else time.monotonic() + (SECONDS if seconds is None else seconds)
    for example in chain.from_iterable(examples[start::step] for start in range(step)):
        result = run(example)
        count += 1
        stopped += result.limit == "time"
        if result.error is not None:
            failed[example.id] = result
            databases[example.id] = str(example.meta.get("db_id", ""))
        if not all_rows and (stopped == STOPPED or time.monotonic() > end):
            break
    return Check(split, len(examples), count, failed, databases)


def finding(
    result: Check, *, scored: bool, tables: Tables = lambda db_id: (), may_skip: bool = False
) -> Finding | None:
    """Return the finding about a split, or None if all its reference queries run.

    Args:
        result: The outcome of the queries.
        scored: True if rows of the split are scored; a large part of them that cannot be is then an error.
        tables: Function from the name of a database to those of its tables.
        may_skip: Any number of rows may be left unscored.
    """
    if not result.failed:
        return _unchecked(result)
    count = len(result.failed)
    none_left = scored and count == result.rows
    is_refused = scored and result.is_intolerable and not may_skip
    queries = f"the {result.run:,} reference queries of {result.split}"
    if result.run != result.rows:
        queries += f" that were run (of {result.rows:,})"
    if none_left:
        message = f"none of {queries} can be run: {result.kinds}; so no row can be scored"
    else:
        unscored = {"valid": "the validation loss counts them all the same"}
        effect = unscored.get(result.split, "the model is trained to write them all the same")
        effect = "these rows are not scored" if scored else effect
        where = f" (rows {abridged(list(result.failed), _SHOWN)})"
        if is_refused:  # an error names its rows itself
            effect = f"more than {TOLERATED:.0%}, so that the score would say little about the questions"
            where = ""
        message = f"{count:,} of {queries} cannot be run: {result.kinds}{where}; {effect}"
    other = "" if scored else "remove the rows, unless only a limit stopped them"
    if result.split == "train" and not may_skip:
        other = "set data.bad_rows: skip to leave the rows out"
    if is_refused and not none_left:
        other = "set data.bad_rows: skip to score the other rows"
    return Finding(
        kind=UNSCORED_KIND,
        level="error" if none_left or is_refused else "warning",
        message=message,
        fix="; ".join(filter(None, (result.existing(tables), ", or ".join(filter(None, (result.fix, other)))))),
        split=result.split,
        count=count,
        ids=some(list(result.failed)),
        details={"run": result.run, "errors": {row: failed.error for row, failed in _first(result.failed)}},
    )


def _unchecked(result: Check) -> Finding | None:
    """Return that time was not enough for all reference queries, or None if it was."""
    if result.run == result.rows:
        return None
    message = f"{result.run:,} of the {result.rows:,} reference queries of {result.split} were run, and none failed"
    return Finding(kind="unchecked_queries", level="info", message=message, split=result.split, count=result.run)


def _first(failed: dict[str, Result]) -> list[tuple[str, Result]]:
    return [(row, failed[row]) for row in some(list(failed))]


def random_finding(examples: Sequence[Example]) -> Finding | None:
    """Return the finding about reference queries of eval that call a random function, or None if none does."""
    random = [example.id for example in examples if _is_random(example.answer)]
    if not random:
        return None
    return Finding(
        kind="random_queries",
        level="warning",
        message=f"{len(random):,} of the {len(examples):,} reference queries of eval call a random function: their "
        "results differ each time, so that a right answer counts as wrong",
        fix="remove these rows, or the random function from their queries",
        split="eval",
        count=len(random),
        ids=some(random),
    )


def _is_random(sql: str) -> bool:
    parts = tokens(sql)
    calls = (one.text.lower() for one, after in pairwise(parts) if after.text == "(")
    return not _RANDOM.isdisjoint(calls)


def refuse_unscorable(examples: Sequence[Example], run: Run) -> None:
    """Check that at least one row can be scored.

    Raises:
        DataError: No reference query can be run.
    """
    if not examples or any(run(example).error is None for example in examples):
        return
    result = check("the rows to score", examples, run, all_rows=True)
    rows = ", ".join(list(result.failed)[:_SHOWN]) + (" …" if result.rows > _SHOWN else "")
    raise DataError(
        f"none of the {result.rows:,} reference queries of {result.split} can be run: {result.kinds}",
        expected="queries that run on the row's database; without a reference result no row can be scored",
        fix=result.fix,
        where=rows,
        field="sql",
    )
