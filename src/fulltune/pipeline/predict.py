"""Answer the rows of a file with a tuned model: ``fulltune predict MODEL DATA``."""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from fulltune.config import Config, ConfigSource
from fulltune.data.chats import MESSAGES, asked
from fulltune.data.load import listed_columns, merged_formats
from fulltune.data.locate import expanded, locate
from fulltune.data.raw import Options
from fulltune.data.read import open_source
from fulltune.data.values import clean
from fulltune.errors import ConfigError, DataError, FulltuneError, Problem, closest
from fulltune.pipeline.answerer import Answerer, WithQueries
from fulltune.pipeline.baseline_model import check_baseline, load_baseline, parted
from fulltune.pipeline.loaded_model import unloaded_model
from fulltune.pipeline.output_file import Dialect, Journal, check_output, json_line, open_journal, write_rows
from fulltune.records.predictions import Predictions, Unanswered
from fulltune.records.run import FileFormat, Record
from fulltune.runtime.progress import Progress, progress_of
from fulltune.runtime.rows_file import paths_of
from fulltune.runtime.version import __version__
from fulltune.tasks.base import Example, Task
from fulltune.tasks.generating import Generating
from fulltune.tasks.text2sql.results import COLUMNS, MORE_ROWS, ROWS, SQL_ERROR, SQL_WARNING, check_queries

#: Size in bytes from which text files are read line by line.
_LARGE = 64 << 20

#: Rows without an answer that the summary lists.
_LISTED = 20

#: A row of the input, or why it cannot be read.
_Item = tuple[str, Mapping[str, Any]] | Problem


class Writable(Protocol):
    """A stream of text."""

    def write(self, text: str, /) -> object:
        """Write a text."""


@dataclass(frozen=True)
class RowSource:
    """The rows to answer; they can be read several times.

    Attributes:
        names: Files, folders, patterns or hub ids.
        options: Encoding and delimiter.
    """

    names: tuple[str, ...]
    options: Options

    def rows(self, start: int = 0, on_form: Callable[[FileFormat], object] = lambda form: None) -> Iterator[_Item]:
        """Yield the rows from a number on; ``on_form`` is called with how each file is read."""
        return islice(self._rows(on_form), start, None)

    def _rows(self, on_form: Callable[[FileFormat], object]) -> Iterator[_Item]:
        for item in open_source(self.names, "test", options=self.options).rows:
            if isinstance(item, FileFormat):
                on_form(item)
            else:
                yield item

    def columns(self) -> tuple[str, ...]:
        """Return the column names.

        Raises:
            DataError: The source does not exist, cannot be read or has no rows.
        """
        names = listed_columns(open_source(self.names, "test", options=self.options))
        if not names:
            raise DataError("no rows", expected="at least one", fix="check the file", where=self.names[0])
        return names

    def fingerprint(self) -> list[Any]:
        """Return name, size and time of every file, which change when its rows do."""
        found: list[Any] = []
        for name, part, files in self._files():
            states = [(str(file), file.stat()) for file in files]
            found.append([name, part, [[file, state.st_size, state.st_mtime_ns] for file, state in states]])
        return found

    def has_mark(self) -> bool:
        """Return True if a file begins with the byte-order mark of UTF-8."""
        for file in chain.from_iterable(files for _, _, files in self._files()):
            with file.open("rb") as opened:
                if opened.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                    return True
        return False

    def _files(self) -> Iterator[tuple[str, str, list[Path]]]:
        """Yield each name with the part of it that is read, and its files."""
        for name in expanded(self.names):
            path, part = locate(name)
            files = [] if path is None else sorted(path.rglob("*")) if path.is_dir() else [path]
            yield name, part, [file for file in files if file.is_file()]


@dataclass(frozen=True)
class Request:
    """Conversion of rows to inputs of a task, and of answers to columns of the output.

    Attributes:
        task: The task.
        columns: Column of each role that the data has.
        database: text2sql: the database of rows that name none.
        prefix: Begins the names of the columns of an answer.
        left_out: Columns of an answer that the data has already.
    """

    task: Task
    columns: Mapping[str, str]
    database: str
    prefix: str = ""
    left_out: frozenset[str] = frozenset()

    def example(self, item: _Item) -> Example | Problem:
        """Return the input of a row, or why it has none."""
        if isinstance(item, Problem):
            return item
        row = item[1]
        values = {role: row[name] for role, name in self.columns.items() if row.get(name) is not None}
        values = {role: asked(value) if role == MESSAGES else clean(value, role) for role, value in values.items()}
        problems = [value for value in values.values() if isinstance(value, Problem)]
        if problems:
            return problems[0]
        values |= values.pop(MESSAGES, {})
        if not values.keys() - {"db_id"}:
            return Problem("nothing (the column is missing or null)", "a text")
        try:
            return self.task.request(values, self.database)
        except FulltuneError as error:
            return error.problems[0]

    def merged(self, item: _Item, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with the columns of its answer."""
        row = {} if isinstance(item, Problem) else item[1]
        named = {self.prefix + name: value for name, value in answer.items()}
        return {**row, **{name: value for name, value in named.items() if name not in self.left_out}}


def predict(
    name: str | Path | Record,
    data: Any,
    *,
    output: str | Path | Writable | None = None,
    config: ConfigSource | None = None,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    database: str = "",
    execute: bool = False,
    max_rows: int = 100,
    prefix: str = "",
    force: bool = False,
    progress: Progress | bool | None = None,
    **options: Any,
) -> Predictions:
    """Answer rows without labels as the evaluation of the run does.

    The output has the rows of the input in their order and with all of their columns. ``prediction`` is added, and by
    task ``probabilities``, ``text`` or ``sql``; ``truncated`` counts the tokens of a text that the model did not read,
    and ``error`` says why a row has no answer. Of text2sql, ``sql_error`` says why a query cannot be run, and with
    ``execute`` also why it failed; ``sql_warning`` names values that occur neither in the question nor in the column
    that they are compared with. A call that was interrupted is resumed by the same call.

    Args:
        name: A run (its id, the beginning of it, its folder, its record, or ``latest``), a version of the registry, or
            any other model, which then needs a config. ``RUN#BASELINE``, such as ``latest#tfidf``, is a baseline of a
            run, which is fitted again on the training rows of the run.
        data: A file, a folder, a pattern or a hub id, several of them, a data frame, a dataset, or a list of dicts.
        output: A file (``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``), or a stream, which gets each row as a line of
            JSON when its block is answered. Without an output, the rows are returned.
        config: Task and columns; by default those of the run.
        out: The runs folder.
        overrides: ``a.b=value`` texts, applied last.
        database: text2sql: the database of rows without a ``db_id``.
        execute: text2sql: run the queries, read-only and within ``evaluation.sql_seconds``, and add ``rows``.
        max_rows: Largest number of result rows of a query; ``more_rows`` marks queries with further ones.
        prefix: Begins the names of the added columns.
        force: Replace the output, and discard an interrupted call with other arguments.
        progress: Where the stage reports: by default a terminal or a notebook; False for nothing.
        options: Keys of the config, such as ``evaluation={"batch_size": 64}``.

    Raises:
        FulltuneError: The model or the data cannot be used, or the output cannot be written.
    """
    if isinstance(output, (str, Path)):
        output = Path(output).expanduser()
        check_output(output, force=force, source=data)
    run, baseline = parted(name)
    unloaded = unloaded_model(run, config, out, overrides, options)
    if baseline:
        check_baseline(unloaded, baseline)
    check_queries(unloaded.task, execute=execute, database=database)
    if max_rows < 1:
        raise ConfigError(f"{max_rows}", expected="at least one row", field="--max-rows")
    source = source_of(data, unloaded.config)
    request = request_of(unloaded.task, unloaded.config, source, database, prefix, execute=execute)
    model: Answerer = load_baseline(unloaded, baseline) if baseline else unloaded.load()
    if unloaded.task.name == "text2sql":
        model = WithQueries(model, unloaded.config.evaluation.sql_seconds, max_rows if execute else None)
    work = _Work(model, source, request, progress_of(progress), "" if baseline else unloaded.warning)
    if isinstance(output, Path):
        return work.to_file(output, force=force)
    return work.in_memory() if output is None else work.to_stream(output)


def source_of(data: Any, config: Config) -> RowSource:
    """Return the rows of a file, several files, or an object of Python.

    Raises:
        ConfigError: The object holds no rows.
    """
    return RowSource(paths_of(data, "data"), Options(config.data.encoding, config.data.delimiter, stream_from=_LARGE))


def request_of(
    task: Task, config: Config, source: RowSource, database: str, prefix: str, *, execute: bool = False
) -> Request:
    """Return how the rows of a source are asked.

    Raises:
        DataError: The source cannot be read, or has no column with inputs.
        ConfigError: A column of the answers exists already.
    """
    available = source.columns()
    columns = config.data.columns_of(task.inputs, available)
    if not columns.keys() - {"db_id"}:
        raise _no_input(task, config, available, source)
    taken = [prefix + name for name in _added(task, execute=execute) if prefix + name in available]
    if taken:
        raise ConfigError(
            f"the data has a column {taken[0]!r} already",
            expected="a new name for the answers",
            fix='add a prefix, such as --prefix tuned_ (in Python: prefix="tuned_")',
            where=", ".join(source.names[:3]),
        )
    same = {prefix + task.answer_name} if isinstance(task, Generating) else set()  # it is in `prediction` too
    return Request(task, columns, database, prefix, frozenset(same.intersection(available)))


def _added(task: Task, *, execute: bool) -> list[str]:
    """Return the names of the columns that are added, without the one that repeats ``prediction``."""
    names = ["prediction", "error", "truncated"]
    names += ["probabilities"] if task.labels else []
    names += [SQL_ERROR, SQL_WARNING] if task.name == "text2sql" else []
    return names + ([COLUMNS, ROWS, MORE_ROWS] if execute else [])


def _no_input(task: Task, config: Config, available: Sequence[str], source: RowSource) -> DataError:
    role = task.inputs[0]
    wanted = config.data.column(role)
    near = closest(wanted, available)
    fix = f"name the column of the texts: --set {config.data.column_key(role)}={near or available[0]}"
    found = f"the columns {', '.join(map(repr, available[:20]))}"
    return DataError(found, expected=f"a column {wanted!r}", fix=fix, where=", ".join(source.names[:3]))


def _blocks(
    model: Answerer, rows: Iterator[_Item], request: Request
) -> Iterator[tuple[list[_Item], list[dict[str, Any]]]]:
    """Yield blocks of rows and their answers."""
    while items := list(islice(rows, model.block)):
        examples = [request.example(item) for item in items]
        answers = iter(list(model.answer([example for example in examples if isinstance(example, Example)])))
        yield items, [_unanswered(example) if isinstance(example, Problem) else next(answers) for example in examples]


def _unanswered(problem: Problem) -> dict[str, Any]:
    reason = problem.found + (f"; expected {problem.expected}" if problem.expected else "")
    return {"prediction": None, "error": reason}


class _Survey:
    """Facts on the output, complete once all rows are answered: counts, column names, and how files were read."""

    def __init__(self) -> None:
        self.total = 0
        self.truncated = 0
        self.failed = 0
        self.failing_queries = 0
        self.doubtful_queries = 0
        self.listed = list[Unanswered]()
        self.columns = dict[str, None]()
        self.forms = dict[str, FileFormat]()

    def add_form(self, form: FileFormat) -> None:
        """Add how a file is read; a second reading of the rows adds nothing."""
        self.forms.setdefault(form.model_dump_json(), form)

    def merged(self, item: _Item, answer: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """Return a row with the columns of its answer, and count it."""
        row = request.merged(item, answer)
        self.total += 1
        self.truncated += "truncated" in answer
        self.failing_queries += SQL_ERROR in answer
        self.doubtful_queries += SQL_WARNING in answer
        self.columns |= dict.fromkeys(row)
        if "error" in answer:
            self.failed += 1
            where = item.where if isinstance(item, Problem) else item[0]
            if len(self.listed) < _LISTED:
                self.listed.append(Unanswered(where=where, reason=answer["error"]))
        return row


class _Work:
    """One call: a model, rows, and where it reports."""

    def __init__(
        self, model: Answerer, source: RowSource, request: Request, progress: Progress, warning: str = ""
    ) -> None:
        self.model = model
        self.source = source
        self.request = request
        self.progress = progress
        self.warning = warning
        self.started = time.perf_counter()

    def in_memory(self) -> Predictions:
        """Return the rows with their answers."""
        rows = list[dict[str, Any]]()
        survey = self._each(rows.append)
        return self._summary(survey, rows=tuple(rows))

    def to_stream(self, stream: Writable) -> Predictions:
        """Write each row as a line of JSON."""
        return self._summary(self._each(lambda row: stream.write(f"{json_line(row)}\n")))

    def _each(self, use: Callable[[dict[str, Any]], object]) -> _Survey:
        """Call a function with each row and its answer, and return what is known of all."""
        survey = _Survey()
        rows = self.source.rows(on_form=survey.add_form)
        with self.progress.stage("predict") as bar:
            for items, answers in _blocks(self.model, rows, self.request):
                for item, answer in zip(items, answers, strict=True):
                    use(survey.merged(item, answer, self.request))
                bar.advance(len(items))
        return survey

    def to_file(self, path: Path, *, force: bool) -> Predictions:
        """Write the rows with their answers to a file."""
        data = self.source.fingerprint()
        key: dict[str, Any] = {"fulltune": __version__, "model": self.model.identity, "data": data}
        key |= {"columns": dict(self.request.columns), "database": self.request.database}
        with open_journal(path, key, self.model.block, force=force) as journal:
            resumed = journal.done
            self._answer(journal)
            if self.source.fingerprint() != data:
                raise DataError("the data changed while it was read", fix="start again with --force", where=str(path))
            survey = _Survey()
            if path.suffix == ".jsonl":
                write_rows(path, (), lambda: self._answered(journal, survey))
            else:  # the other formats need the names of all columns before the first row
                deque(self._answered(journal, survey), maxlen=0)
                dialect = Dialect.of(survey.forms.values(), has_mark=self.source.has_mark())
                write_rows(path, list(survey.columns), lambda: self._typed(path, journal), dialect)
            journal.path.unlink()
        return self._summary(survey, output=str(path), resumed=resumed)

    def _answer(self, journal: Journal) -> None:
        """Answer all rows that the journal has no answer of."""
        with self.progress.stage("predict") as bar:
            bar.advance(journal.done)
            try:
                for items, answers in _blocks(self.model, self.source.rows(journal.done), self.request):
                    journal.append(answers)
                    bar.advance(len(items))
            except KeyboardInterrupt:
                noun = "row is" if journal.done == 1 else "rows are"
                kept = f"interrupted: {journal.done:,} answered {noun} kept; the same command resumes"
                raise KeyboardInterrupt(kept) from None

    def _answered(self, answers: Iterable[Mapping[str, Any]], survey: _Survey) -> Iterator[dict[str, Any]]:
        """Yield all rows with their answers, and add them to a survey."""
        rows = self.source.rows(on_form=survey.add_form)
        for item, answer in zip(rows, answers, strict=True):
            yield survey.merged(item, answer, self.request)

    def _typed(self, path: Path, journal: Journal) -> Iterator[dict[str, Any]]:
        """Yield all rows with their answers; results of queries, whose columns have any type, as JSON in Parquet."""
        results = self.request.prefix + ROWS
        for row in self._answered(journal, _Survey()):
            if path.suffix == ".parquet" and self.model.task.name == "text2sql" and results in row:
                row[results] = json_line(row[results])
            yield row

    def _summary(self, survey: _Survey, **more: Any) -> Predictions:
        return Predictions(
            model=self.model.name,
            task=self.model.task.name,
            total=survey.total,
            answered=survey.total - survey.failed,
            truncated=survey.truncated,
            failing_queries=survey.failing_queries,
            doubtful_queries=survey.doubtful_queries,
            warning=self.warning,
            seconds=round(time.perf_counter() - self.started, 3),
            unanswered=tuple(survey.listed),
            files=merged_formats(tuple(survey.forms.values())),
            **more,
        )
