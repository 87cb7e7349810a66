"""Run the queries of a data set on its databases, so that ``init`` can say which databases and tables they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fulltune.config import EvaluationConfig
from fulltune.data.load import Row
from fulltune.errors import DataError
from fulltune.tasks.base import Example
from fulltune.tasks.text2sql import references
from fulltune.tasks.text2sql.execution import Result, Results, printable
from fulltune.tasks.text2sql.schema import schema_of_file

#: Seconds for which queries are run.
SECONDS = 10.0

#: Tables that a sentence lists.
_SHOWN = 12


@dataclass(frozen=True)
class Queries:
    """Queries and the databases that they are run on, by name."""

    rows: Sequence[Row]
    databases: Mapping[str, Path]
    results: Results = field(default_factory=lambda: Results(EvaluationConfig().sql_seconds))

    def sentences(self) -> list[str]:
        """Return the tables of a single database, and how many of the queries run."""
        check = self.check
        failed = len(check.failed)
        if not failed:
            tried = "all" if check.run == check.rows else f"{check.run:,} of"
            return [f"{self._where()}; the queries of {tried} {check.rows:,} rows were run, and none failed"]
        existing = check.existing(lambda db_id: _tables(self.databases[db_id]))
        listed = f"; {existing}" if existing and len(self.databases) > 1 else ""
        return [
            self._where(),
            f"{failed:,} of {check.run:,} queries cannot be run: {check.kinds_with_rows}{listed}. {self._effect}: "
            + check.fix,
        ]

    @cached_property
    def check(self) -> references.Check:
        """Run the queries on the databases, as many as :data:`SECONDS` allow."""
        examples = [self._example(row) for row in self.rows]
        return references.check("train", examples, self._run, all_rows=False, seconds=SECONDS)

    @property
    def can_be_skipped(self) -> bool:
        """True if some queries fail, and few enough to leave them out."""
        return bool(self.check.failed) and not self.check.is_intolerable

    @property
    def _effect(self) -> str:
        if self.can_be_skipped:
            return "Rows of train among them are left out (data.bad_rows: skip), those of eval are not scored"
        return f"Rows of eval among them are not scored, and more than {references.TOLERATED:.0%} of them stop a run"

    def _where(self) -> str:
        if len(self.databases) > 1:
            return f"{len(self.databases):,} databases"
        [path] = self.databases.values()
        tables = _tables(path)
        more = f" and {len(tables) - _SHOWN} more" if len(tables) > _SHOWN else ""
        return f"database {printable(str(path))}: {', '.join(map(printable, tables[:_SHOWN]))}{more}"

    def _example(self, row: Row) -> Example:
        db_id = str(row.fields.get("db_id", next(iter(self.databases))))
        return Example(row.id, row.fields["question"], row.fields["sql"], {"db_id": db_id})

    def _run(self, example: Example) -> Result:
        path = self.databases.get(example.meta["db_id"])
        if path is None:
            return Result(error=f"no database {printable(example.meta['db_id'])}")
        return self.results.execute(str(path), example.answer)


def _tables(path: Path) -> tuple[str, ...]:
    try:
        return schema_of_file(path).tables
    except DataError as error:
        return (f"none that can be read ({error.problems[0].found})",)
