"""``text2sql``: a question and a schema in, a query out; scored by what the query returns on the real database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fulltune import inference
from fulltune.config import Config
from fulltune.errors import ConfigError, DataError
from fulltune.metrics import sql, text
from fulltune.metrics.base import Metric
from fulltune.model import Bundle
from fulltune.records import Prediction
from fulltune.tasks import prompts
from fulltune.tasks.base import Column, Example
from fulltune.tasks.prompts import Shot, Wording
from fulltune.tasks.seq2seq import Seq2Seq
from fulltune.tasks.text2sql import execution, normalise, schema

if TYPE_CHECKING:
    from fulltune.data.load import Row


#: Rows of a result that an answer shows.
SHOWN_ROWS = 10


class Text2SQL(Seq2Seq):
    """Columns ``question``, ``sql`` and ``db_id``; ``data.databases`` names the folder of SQLite files."""

    name = "text2sql"
    version = 1
    question = "Question"
    answer = "SQL"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.data.databases is None:
            raise ConfigError(
                "missing",
                expected="a folder of SQLite files",
                fix="set data.databases: execution accuracy needs the real databases",
                field="data.databases",
            )
        self.execute = lru_cache(maxsize=4096)(self._execute)

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        return Column("question", str), Column("sql", str), Column("db_id", str)

    def example(self, row: Row) -> Example:
        database = schema.find_database(Path(str(self.config.data.databases)), row.fields["db_id"])
        meta = {"db_id": row.fields["db_id"], "database": str(database)}
        return Example(row.id, row.fields["question"], row.fields["sql"], meta)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return sql.execution_accuracy, sql.sql_exact_match, sql.executes, text.bleu, sql.empty_results, text.capped

    def wording(self, example: Example, bundle: Bundle, *, shots: bool = False) -> Wording:
        """The schema stands once, at the top, whatever the family."""
        chat, instruction = prompts.wants_chat(bundle, self.config.data.chat), self.config.data.instruction or ""
        schema = self.schema(example.meta["db_id"])
        return Wording(instruction, self.question, self.answer, chat, schema=schema)

    def reads(self, example: Example) -> str:
        return self.schema(example.meta["db_id"])

    def shot(self, shot: Example, asked: Example) -> Shot:
        """A shot from another database brings its own schema."""
        if shot.meta["db_id"] == asked.meta["db_id"]:
            return Shot(shot.input, shot.answer)
        return Shot(f"{shot.input} (Schema: {self.schema(shot.meta['db_id'])})", shot.answer)

    def prediction(self, system: str, example: Example, generated: inference.Generated) -> Prediction:
        query, gold = normalise.strip_fences(generated.text), example.answer
        expected = self.execute(example.meta["database"], gold)
        found = self.execute(example.meta["database"], query)
        values = {
            "match": execution.match(expected, found, ordered=execution.is_ordered(gold)),
            "executes": found.error is None,
            "exact": normalise.normalise_sql(query) == normalise.normalise_sql(gold),
            "empty": found.error is None and expected.empty and found.empty,
            "error": found.error or "",
            "gold_error": expected.error or "",
            "capped": generated.capped,
            "tokens": generated.tokens,
        }
        return Prediction(
            system=system, id=example.id, input=example.input, reference=gold, output=query, values=values
        )

    def ask(self, bundle: Bundle, system: str, text: str, place: str = "") -> Prediction:
        """A query and the rows that it returns; ``place`` is the database, if there are several."""
        folder = Path(str(self.config.data.databases))
        known = sorted({path.stem for ending in ("sqlite", "db") for path in folder.rglob(f"*.{ending}")})
        if not place and len(known) != 1:
            listed = ", ".join(known[:10])
            raise ConfigError(f"{len(known)} databases", expected="one to ask", fix=f"add --db with one of {listed}")
        name = place or known[0]
        meta = {"db_id": name, "database": str(schema.find_database(folder, name))}
        found = next(self.predictor(bundle, system)([Example("asked", text, "", meta)]))
        result = self.execute(meta["database"], str(found.output))
        values = {"rows": [list(row) for row in result.rows[:SHOWN_ROWS]], "count": len(result.rows)}
        return found.model_copy(update={"values": values | {"error": result.error or ""}})

    def schema(self, db_id: str) -> str:
        """One line for a database: from ``data.schemas`` where it stands there, else read from the file."""
        if db_id in self._given_schemas:
            return schema.from_create(self._given_schemas[db_id])
        return schema.read_schema(schema.find_database(Path(str(self.config.data.databases)), db_id))

    @cached_property
    def _given_schemas(self) -> dict[str, str]:
        if self.config.data.schemas is None:
            return {}
        path = Path(self.config.data.schemas)
        try:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"the schemas cannot be read ({error})",
                expected="a JSON object, db_id → CREATE statements",
                where=str(path),
                fix="correct data.schemas or leave it out: schemas are then read from the databases",
            ) from error
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise DataError("the schemas are of another form", expected="a JSON object, db_id → text", where=str(path))
        return found

    def _execute(self, database: str, query: str) -> execution.Result:
        return execution.execute(Path(database), query, seconds=self.config.evaluation.sql_seconds)
