"""Run reference queries before training: rows whose reference query fails cannot be scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fulltune.data.findings import UNSCORED_KIND, Finding, some
from fulltune.errors import DataError
from fulltune.tasks.base import Example
from fulltune.tasks.text2sql.execution import Result

#: Maximum number of reference queries that are run for a split that is not scored, evenly spaced over its rows.
MOST = 1000
#: Number of queries stopped at the time limit after which the check of such a split ends.
STOPPED = 10
#: Maximum number of kinds of errors in a message.
_SHOWN = 3

Run = Callable[[Example], Result]


@dataclass(frozen=True)
class Check:
    """Result of a check: numbers of rows and of executed reference queries, and failed results by row id."""

    split: str
    rows: int
    run: int
    failed: dict[str, Result]

    @property
    def kinds(self) -> str:
        """The most frequent errors with their counts."""
        kinds = Counter(str(result.error) for result in self.failed.values())
        names = [f"{error} ({count})" for error, count in kinds.most_common(_SHOWN)]
        return ", ".join(names) + (f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else "")

    @property
    def fix(self) -> str:
        slow = any(result.limit == "time" for result in self.failed.values())
        large = any(result.limit == "size" for result in self.failed.values())
        advice = ["correct these queries or the databases"]
        advice += ["raise evaluation.sql_seconds"] if slow else []
        advice += ["remove the long values (this limit is fixed)"] if large else []
        return ", or ".join(advice)


def check(split: str, examples: Sequence[Example], run: Run, *, all_rows: bool) -> Check:
    """Run the reference queries of a split: all, or a sample that ends early if many reach the time limit."""
    chosen = examples if all_rows else examples[:: -(-len(examples) // MOST) or 1]
    failed: dict[str, Result] = {}
    count = stopped = 0
    for example in chosen:
        result = run(example)
        count += 1
        stopped += result.limit == "time"
        if result.error is not None:
            failed[example.id] = result
        if stopped == STOPPED and not all_rows:
            break
    return Check(split, len(examples), count, failed)


def finding(result: Check, *, scored: bool) -> Finding | None:
    """Return the finding about a split, or None if all reference queries run."""
    if not result.failed:
        return None
    count = len(result.failed)
    none_left = scored and count == result.rows
    queries = f"the {result.run:,} reference queries of {result.split}"
    if result.run != result.rows:
        queries += f" that were run (of {result.rows:,})"
    if none_left:
        message = f"none of {queries} can be run: {result.kinds}; so no row can be scored"
    else:
        effect = "these rows are not scored" if scored else "these rows are used as they are"
        message = f"{count:,} of {queries} cannot be run: {result.kinds}; {effect}"
    return Finding(
        kind=UNSCORED_KIND,
        level="error" if none_left else "warning",
        message=message,
        fix=result.fix,
        split=result.split,
        count=count,
        ids=some(list(result.failed)),
        details={"run": result.run, "errors": {row: failed.error for row, failed in _first(result.failed)}},
    )


def _first(failed: dict[str, Result]) -> list[tuple[str, Result]]:
    return [(row, failed[row]) for row in some(list(failed))]


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
