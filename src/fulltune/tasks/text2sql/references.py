"""Run the reference queries before training: a row whose own query fails cannot be scored, and is learnt as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fulltune.data.findings import UNSCORED_KIND, Finding, some
from fulltune.errors import DataError
from fulltune.tasks.base import Example
from fulltune.tasks.text2sql.execution import Result

#: Reference queries of a split that are run where the split is not scored, evenly spread over its rows.
MOST = 1000
#: Queries stopped at the time limit after which no more of such a split are run.
STOPPED = 10
#: Kinds of errors that a sentence names.
_SHOWN = 3

Run = Callable[[Example], Result]


@dataclass(frozen=True)
class Check:
    """How many reference queries of a split were run, out of how many rows, and those that failed by row id."""

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
        advice += ["leave the long values out of them (this limit is fixed)"] if large else []
        return ", or ".join(advice)


def check(split: str, examples: Sequence[Example], run: Run, *, all_rows: bool) -> Check:
    """Run the reference queries of a split: all, or a sample that ends early when many reach the time limit."""
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


def finding(found: Check, *, scored: bool) -> Finding | None:
    """Return what the audit says about a split, or None where all reference queries run."""
    if not found.failed:
        return None
    count, none_left = len(found.failed), scored and len(found.failed) == found.rows
    of = f"the {found.run:,} reference queries of {found.split}"
    of += "" if found.run == found.rows else f" that were run (of {found.rows:,})"
    if none_left:
        message = f"none of {of} can be run: {found.kinds}; so no row can be scored"
    else:
        effect = "these rows are not scored" if scored else "these rows are used as they are"
        message = f"{count:,} of {of} cannot be run: {found.kinds}; {effect}"
    return Finding(
        kind=UNSCORED_KIND,
        level="error" if none_left else "warning",
        message=message,
        fix=found.fix,
        split=found.split,
        count=count,
        ids=some(list(found.failed)),
        details={"run": found.run, "errors": {row: result.error for row, result in _first(found.failed)}},
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
    found = check("the rows to score", examples, run, all_rows=True)
    rows = ", ".join(list(found.failed)[:_SHOWN]) + (" …" if found.rows > _SHOWN else "")
    raise DataError(
        f"none of the {found.rows:,} reference queries of {found.split} can be run: {found.kinds}",
        expected="queries that run on the row's database; without a result of theirs nothing can be scored",
        fix=found.fix,
        where=rows,
        field="sql",
    )
