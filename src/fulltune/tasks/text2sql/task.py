"""Task ``text2sql``: question and schema to a query, scored by the query's result on the real database."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.config import Config
from fulltune.data.findings import Finding
from fulltune.errors import ConfigError, DataError, Problem
from fulltune.metrics import sql, text
from fulltune.metrics.base import Metric
from fulltune.records.run import Prediction
from fulltune.tasks import prompts
from fulltune.tasks.base import Column, Example, Facts
from fulltune.tasks.generation import TextToText
from fulltune.tasks.prompts import Shot, Wording
from fulltune.tasks.text2sql import execution, literals, normalize, references, repeats, schema
from fulltune.tasks.text2sql.schema import Schema
from fulltune.tasks.text2sql.snapshot import source
from fulltune.tasks.text2sql.stored_values import stored_texts

if TYPE_CHECKING:
    from fulltune.data.load import Row
    from fulltune.models.bundle import Bundle
    from fulltune.models.inference import Generated


#: Maximum number of result rows in an answer.
SHOWN_ROWS = 10
#: Maximum number of faults of a database in a message.
SHOWN_FAULTS = 3
#: Fraction of the tokens from which on a plan advises to leave out a schema that all rows share.
SHARED_SCHEMA = 0.5
#: Largest file of schemas, in bytes.
MAX_SCHEMAS = 256 << 20


@dataclass(frozen=True)
class Databases(Facts):
    """Files and schemas of the databases that rows name, by ``db_id``."""

    paths: Mapping[str, str] = field(default_factory=dict)
    schemas: Mapping[str, Schema] = field(default_factory=dict)


class Text2SQL(TextToText):
    """Text to SQL, from ``question``, ``sql`` and ``db_id``; ``data.databases`` is the folder of SQLite files.

    Rows about a single database need no ``db_id``: ``data.databases`` is then that file.
    """

    name = "text2sql"
    version = 2
    part = "database"
    inputs = ("question", "db_id")
    baselines = ("nearest", "nearest_values", "zero_shot", "few_shot")
    question = "Question"
    answer = "SQL"
    answer_name = "sql"
    streams = False
    facts: Databases = Databases()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.data.databases is None:
            raise ConfigError(
                "missing",
                expected="a folder of SQLite files, or one SQLite file",
                fix="set data.databases: execution accuracy needs the real databases",
                field="data.databases",
            )
        self._results = execution.Results(config.evaluation.sql_seconds)
        self._located = dict[str, Path]()  # a cache: many rows use the same database

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        """Return the columns to read, after checking that the folder or file of databases exists.

        Raises:
            ConfigError: It does not exist: one problem instead of one per row.
        """
        named = self._databases
        if named.is_file():
            return Column("question", str), Column("sql", str)
        if not named.is_dir():
            raise ConfigError(
                f"{execution.printable(str(named))} does not exist",
                expected="a folder of SQLite files, or one SQLite file",
                fix="correct the path; a relative one starts at the working directory",
                field="data.databases",
            )
        return Column("question", str), Column("sql", str), Column("db_id", str)

    def example(self, row: Row) -> Example:
        db_id = row.fields.get("db_id", self._databases.stem)
        try:
            database = self._database(db_id)
        except DataError as error:
            raise DataError([_in_row(problem, row) for problem in error.problems]) from None
        meta = {"db_id": db_id, "database": str(database)}
        return Example(row.id, row.fields["question"], row.fields["sql"], meta, part=db_id)

    def learn(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Databases:
        """Return the schemas of all databases, after checking that at least one row can be scored.

        Raises:
            DataError: Schemas or databases cannot be read (lists all of them), or no reference query of the rows to
                score can be run.
        """
        paths = {example.meta["db_id"]: example.meta["database"] for example in (*train, *evaluation)}
        schemas = self._read_schemas(paths)
        references.refuse_unscorable(evaluation, self._reference)
        return Databases(paths=paths, schemas=schemas)

    def findings(self, splits: Mapping[str, Sequence[Example]]) -> list[Finding]:
        """Report queries that fail, are random or that train has too, and databases; warn about unscored rows."""
        checks = [
            references.finding(
                references.check(split, examples, self._reference, all_rows=split == "eval"),
                scored=split == "eval",
                tables=self._tables,
                may_skip=self.config.data.bad_rows == "skip",
            )
            for split, examples in splits.items()
        ]
        findings = [check for check in checks if check is not None]
        for unscored in (check for check in findings if check.split == "eval"):
            warnings.warn(f"{unscored.message}; to score them, {unscored.fix}", stacklevel=2)
        others = (repeats.finding(splits), references.random_finding(splits.get("eval", ())))
        findings += filter(None, others)
        return [*findings, *self._database_faults(), *self._hidden_schemas()]

    def unusable(self, examples: Sequence[Example]) -> Mapping[str, Problem]:
        """Return the rows whose query fails on its database, except those that only a limit stopped."""
        failed = references.check("train", examples, self._reference, all_rows=False).failed
        return {
            row: Problem(
                f"the query fails ({result.error})",
                "a query that runs on the database of its row",
                "correct it or the database",
                field="sql",
            )
            for row, result in failed.items()
            if not result.limit
        }

    def files(self) -> list[list[Any]]:
        """Return name, size and time of the databases that rows use, and of their journals."""
        return [list(fact) for path in sorted(map(Path, self.facts.paths.values())) for fact in source(path).stamp]

    def _tables(self, db_id: str) -> tuple[str, ...]:
        """Return the tables of a database itself, whatever ``data.schemas`` says."""
        return schema.schema_of_file(self._database(db_id)).tables

    def _database_faults(self) -> list[Finding]:
        return [
            Finding(
                kind="database_faults",
                level="warning",
                message=f"database {db_id}: {len(schema.faults)} parts cannot be read, and its schema omits them: "
                + "; ".join(schema.faults[:SHOWN_FAULTS]),
                fix="correct or remove them",
                count=len(schema.faults),
                details={"faults": schema.faults[:SHOWN_ROWS]},
            )
            for db_id, schema in self.facts.schemas.items()
            if schema.faults
        ]

    def _hidden_schemas(self) -> list[Finding]:
        """Return a finding if prompts do not name the one of several databases that they are about."""
        count = len(self.facts.paths)
        if count < 2 or self.config.data.schema_in_prompt != "none":
            return []
        message = f"rows are about {count:,} databases, and prompts do not show which: data.schema_in_prompt is none"
        return [
            Finding(
                kind="hidden_schemas",
                level="warning",
                message=message,
                fix="set data.schema_in_prompt to names or full",
                count=count,
            )
        ]

    def advice(self, examples: Sequence[Example], row_tokens: float, count: Callable[[str], int]) -> list[str]:
        """Advise to leave out the schema of the only database if it is most of what is read."""
        if len({example.meta["db_id"] for example in examples}) != 1:
            return []
        share = min(1.0, count(self.schema(examples[0].meta["db_id"])) / max(1.0, row_tokens))
        if share <= SHARED_SCHEMA:
            return []
        shorter = "names is shorter, and " if self.config.data.schema_in_prompt == "full" else ""
        return [
            f"{share:.0%} of the tokens are the schema of the only database, which is the same in all rows. With "
            f"data.schema_in_prompt: none a step takes less time and memory, so more epochs fit ({shorter}a base that "
            "was not pretrained on SQL learns the tables from the queries anyway)."
        ]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        spider = self.config.evaluation.sql_match == "spider"
        accuracy = sql.spider_accuracy if spider else sql.execution_accuracy
        return accuracy, sql.sql_exact_match, sql.executes, text.bleu, sql.empty_results, text.capped

    def wording(self, example: Example, bundle: Bundle, *, shots: bool = False) -> Wording:
        """Return the wording with the schema at the top, for all families."""
        chat = prompts.wants_chat(bundle, self.config.data.chat)
        instruction = self.config.data.instruction or ""
        schema = self.schema(example.meta["db_id"])
        return Wording(instruction, self.question, self.answer, chat, schema=schema, day=self.day)

    def reads(self, example: Example) -> str:
        return self.schema(example.meta["db_id"])

    def shot(self, shot: Example, example: Example) -> Shot:
        """Return a shot; if it uses another database, it includes that database's schema."""
        if shot.meta["db_id"] == example.meta["db_id"]:
            return Shot(shot.input, shot.answer)
        schema = self.schema(shot.meta["db_id"])
        return Shot(f"{shot.input} (Schema: {schema})" if schema else shot.input, shot.answer)

    def answer_text(self, text: str) -> str:
        return normalize.strip_fences(text)

    def prediction(self, system: str, example: Example, generated: Generated) -> Prediction:
        """Return a query and its match with the reference result; None if the reference query itself fails."""
        query = self.answer_text(generated.text)
        gold = example.answer
        expected = self._reference(example)
        given = self._results.execute(example.meta["database"], query)
        is_scored = expected.error is None
        verdict = execution.verdict(gold, expected, given, self.config.evaluation.sql_match)
        given_up = "comparison" if verdict is None else ""
        values = {
            "match": bool(verdict) if is_scored else None,
            "executes": given.error is None,
            "exact": normalize.normalize_sql(query) == normalize.normalize_sql(gold),
            "empty": (expected.empty and given.empty) if is_scored else None,
            "error": given.error or "",
            "warning": "" if given.error else self._warning(example, query),
            "stopped_by": given.limit or given_up,
            "gold_error": expected.error or "",
            "capped": generated.capped,
            "tokens": generated.tokens,
        }
        return Prediction(
            system=system, id=example.id, input=example.input, reference=gold, output=query, values=values
        )

    def details(self, predictions: Iterable[Prediction]) -> dict[str, Any]:
        """Return the numbers of queries that a limit stopped or that have unknown values, and of unscored rows."""
        stopped = unscored = doubtful = 0
        for prediction in predictions:
            stopped += bool(prediction.values.get("stopped_by"))
            unscored += bool(prediction.values.get("gold_error"))
            doubtful += bool(prediction.values.get("warning"))
        return {
            "queries_stopped_at_a_limit": stopped,
            "queries_with_unknown_values": doubtful,
            "rows_without_a_reference_result": unscored,
        }

    def named_values(self, examples: Iterable[Example]) -> Mapping[str, str]:
        """Return the texts that the databases of the examples store, by their form in lower case."""
        databases = dict.fromkeys(example.meta["database"] for example in examples)
        texts = (text for database in databases for text in stored_texts(self._results, Path(database)))
        return {text.strip().casefold(): text for text in texts}

    def ask(self, bundle: Bundle, system: str, text: str, place: str = "") -> Prediction:
        """Return a query and its result; ``place`` is the database, required if there are several."""
        example = self.request({"question": text}, place)
        answer = next(self.predictor(bundle, system)([example]))
        result = self._results.execute(example.meta["database"], str(answer.output))
        values = {"rows": [list(row) for row in result.rows[:SHOWN_ROWS]], "count": len(result.rows)}
        values["more"] = result.truncated
        warning = "" if result.error else self._warning(example, str(answer.output))
        return answer.model_copy(update={"values": values | {"error": result.error or "", "warning": warning}})

    def request(self, row: Mapping[str, str], place: str = "") -> Example:
        """Return the example of a question; ``db_id`` or ``place`` is the database, required if there are several.

        Raises:
            ConfigError: It is required, or ``place`` is not the only database.
        """
        files = (path for ending in ("sqlite", "db") for path in self._databases.rglob(f"*.{ending}"))
        known = [self._databases.stem] if self._databases.is_file() else schema.names_of(files)
        name = row.get("db_id") or place
        if not name and len(known) != 1:
            listed = ", ".join(known[:10])
            raise ConfigError(
                f"{len(known)} databases",
                expected="the database to ask",
                fix=f"name one (--db, in Python `place` or `database`): {listed}",
            )
        if self._databases.is_file():
            self._check_only(place)
            name = known[0]  # as in training, where a column db_id is not read
        name = name or known[0]
        return Example("asked", row["question"], "", {"db_id": name, "database": str(self._database(name))})

    def _check_only(self, place: str) -> None:
        """Check that a name is that of the only database, or empty.

        Raises:
            ConfigError: It is another one.
        """
        only = self._databases
        if place not in ("", only.stem, only.name):
            raise ConfigError(
                f"there is no database '{execution.printable(place)}'",
                expected=f"{only.stem}, the only one",
                fix="correct the name, or leave it out",
            )

    def schema(self, db_id: str) -> str:
        """Return the schema of a database as prompts show it (``data.schema_in_prompt``), in one line."""
        form = self.config.data.schema_in_prompt
        if form == "none":
            return ""
        schema = self.facts.schemas.get(db_id) or self._schema(db_id)
        return schema.names if form == "names" else schema.line

    def _schema(self, db_id: str) -> Schema:
        """Return the schema of a database, from ``data.schemas`` or otherwise from the file."""
        if db_id not in self._given_schemas:
            return schema.schema_of_file(self._database(db_id))
        try:
            return schema.from_create(self._given_schemas[db_id])
        except DataError as error:
            where = f"{self.config.data.schemas}, schema of {execution.printable(db_id)}"
            raise DataError([replace(problem, where=where) for problem in error.problems]) from None

    def _read_schemas(self, db_ids: Collection[str]) -> dict[str, Schema]:
        schemas = dict[str, Schema]()
        problems = list[Problem]()
        missing = [execution.printable(db_id) for db_id in db_ids if db_id not in self._given_schemas]
        if self._given_schemas and missing:
            names = ", ".join(missing[:SHOWN_FAULTS]) + (" …" if len(missing) > SHOWN_FAULTS else "")
            warnings.warn(
                f"{self.config.data.schemas} has no schema for {len(missing):,} of the {len(db_ids):,} databases of "
                f"the rows ({names}): theirs are read from the databases. Check the names if these should be listed.",
                stacklevel=3,
            )
        for db_id in db_ids:
            try:
                schemas[db_id] = self._schema(db_id)
            except DataError as error:
                problems += error.problems
        if problems:
            raise DataError(problems)
        return schemas

    def _database(self, db_id: str) -> Path:
        known = self._located.get(db_id)
        if known is None:
            one = self._databases
            known = self._located[db_id] = one if one.is_file() else schema.find_database(one, db_id)
        return known

    @property
    def _databases(self) -> Path:
        """The folder of the databases, or the only one."""
        return Path(str(self.config.data.databases))

    def _warning(self, example: Example, query: str) -> str:
        return literals.warning(self._results, example.meta["database"], example.input, query)

    def _reference(self, example: Example) -> execution.Result:
        return self._results.execute(example.meta["database"], example.answer)

    @cached_property
    def _given_schemas(self) -> dict[str, str]:
        if self.config.data.schemas is None:
            return {}
        path = Path(self.config.data.schemas)
        try:
            _check_size(path)
            schemas = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_duplicates)
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"the schemas cannot be read ({error})",
                expected="a JSON object, db_id → CREATE statements",
                where=str(path),
                fix="correct data.schemas, or remove it: schemas are then read from the databases",
            ) from error
        if not isinstance(schemas, dict) or not all(isinstance(value, str) for value in schemas.values()):
            raise DataError("the schemas have another form", expected="a JSON object, db_id → text", where=str(path))
        return schemas


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary.

    Raises:
        ValueError: A name occurs twice.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        names = ", ".join(map(execution.printable, repeated[:SHOWN_ROWS]))
        raise ValueError(f"these names occur more than once: {names}")
    return result


def _check_size(path: Path) -> None:
    """Check that a file of schemas is small enough to be read completely.

    Raises:
        ValueError: It is too large.
    """
    size = path.stat().st_size
    if size > MAX_SCHEMAS:
        raise ValueError(f"{size >> 20:,} MB; at most {MAX_SCHEMAS >> 20} are allowed")


def _in_row(problem: Problem, row: Row) -> Problem:
    """Return a problem with the position of its row; the folder that was searched is moved into the fix."""
    fix = f"in {problem.where}, {problem.fix}" if problem.where and problem.fix else problem.fix
    return replace(problem, where=row.where, fix=fix)
