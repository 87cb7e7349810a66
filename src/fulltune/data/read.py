"""Open the sources that a config names as raw rows.

A row that cannot be parsed is replaced by a :class:`~fulltune.errors.Problem`, so that all problems are reported at
once. What a file holds is decided by its content, with a note if its name states something else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from fulltune.data import columnar
from fulltune.data.csv_rows import is_table, open_csv, stream_csv
from fulltune.data.excel import open_excel
from fulltune.data.file_text import head_of, stream_text, text_of
from fulltune.data.folders import (
    DOCUMENT_COLUMNS,
    Folder,
    documents_doubt,
    folder_of_split,
    open_documents,
    refuse_both,
    shards,
)
from fulltune.data.formats import FORMATS, by_content, by_name, refuse_other_formats, suffix, unknown_format
from fulltune.data.json_rows import is_json_lines, json_rows, starts_with_object, stream_json_lines
from fulltune.data.locate import expanded, locate
from fulltune.data.raw import Item, Opened, Options
from fulltune.errors import DataError, Problem, abridged
from fulltune.records.run import FileFormat
from fulltune.runtime import paths
from fulltune.runtime.rows_file import is_cached

#: Delimiter of a CSV file by its suffix, if several are equally likely.
_DELIMITERS = {".tsv": "\t", ".tab": "\t", ".psv": "|"}

_DEFAULT = Options()


@dataclass(frozen=True)
class Rows:
    """The rows of a source, before any column is given a role.

    Attributes:
        columns: Column names in their order.
        rows: Values by column.
        places: Position of each row: file and line.
        problems: Rows that cannot be parsed.
        files: The format of each file, and what was assumed.
    """

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    places: tuple[str, ...]
    problems: tuple[Problem, ...]
    files: tuple[FileFormat, ...]


def read_rows(
    source: str | Sequence[str], *, split: str = "train", options: Options = _DEFAULT, limit: int | None = None
) -> Rows:
    """Read a source as it is: rows, column names, and what was inferred to read them.

    Args:
        source: A file, folder, pattern or hub id, or a list of these, as in a config.
        split: The split to read if the source has several and names none: ``train``, ``validation`` or ``test``.
        options: Encoding and delimiter, if they are known.
        limit: Maximum number of rows.

    Raises:
        DataError: The source does not exist or cannot be read.
    """
    opened = open_source(source, split, options=options)
    columns = dict.fromkeys(opened.columns or ())
    rows, places, problems, files = list[Mapping[str, Any]](), list[str](), list[Problem](), list[FileFormat]()
    for item in opened.rows:
        if isinstance(item, Problem):
            problems.append(item)
        elif isinstance(item, FileFormat):
            files.append(item)
        else:
            places.append(item[0])
            rows.append(item[1])
            columns.update(dict.fromkeys(item[1]))
        if len(rows) == limit:
            break
    return Rows(tuple(columns), tuple(rows), tuple(places), tuple(problems), tuple(files))


def open_source(
    source: str | Sequence[str], split: str, wanted: Collection[str] | None = None, options: Options = _DEFAULT
) -> Opened:
    """Open a source of a config: a file, a folder, or a hub id; ``name#part`` selects a split, a sheet or a JSON key.

    Several sources, or the files that a pattern such as ``train-*.parquet`` matches, are read one after another.

    Args:
        source: As written by the user.
        split: The split to read if ``source`` names none.
        wanted: Columns to read if the format allows skipping others; None for all.
        options: The user's statements about the files.

    Raises:
        DataError: The source does not exist, has an unknown format, or cannot be read.
    """
    return _all(expanded(source), split, wanted, options)


#: Config keys that rows in memory are given in, by split.
_KEYS = {"train": "data.train", "validation": "data.valid", "test": "data.eval"}


def source_name(source: str | Sequence[str]) -> str:
    """Return the name of a source for messages and records; rows that were given from Python have no file."""
    if isinstance(source, str):
        return "rows in memory" if is_cached(Path(source)) else source
    return abridged(source, 3)


def place_of(source: str | Sequence[str], split: str) -> str:
    """Return the name of a source for messages: of rows that were given from Python, their config key."""
    in_memory = isinstance(source, str) and is_cached(Path(source))
    return _KEYS.get(split, f"data.{split}") if in_memory else source_name(source)


def _all(names: Sequence[str], split: str, wanted: Collection[str] | None, options: Options) -> Opened:
    """Open one or several sources as one. All are located first; each is opened when its turn comes.

    Raises:
        DataError: Some of them do not exist.
    """
    problems = list[Problem]()
    for name in names:
        try:
            locate(name)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    first = _one(names[0], split, wanted, options)
    if len(names) == 1:
        return first
    same_name = len({Path(name).name for name in names}) < len(names)

    def rows() -> Iterator[Item]:
        for number, name in enumerate(names):
            opened = _one(name, split, wanted, options) if number else first
            if opened.doubt is not None and not set(opened.columns or ()) & set(wanted or ()):
                raise DataError(opened.doubt)
            problem = _other_columns(first, opened, name, wanted)
            folder = f"{Path(name).parent}/" if same_name else ""
            yield from [problem] if problem else (_placed(item, folder) for item in opened.rows)

    return Opened(first.columns, rows(), first.doubt)


def _other_columns(first: Opened, opened: Opened, name: str, wanted: Collection[str] | None) -> Problem | None:
    """Return a problem if a file lacks columns that the first one has: one problem instead of one per row."""
    if first.columns is None or opened.columns is None:
        return None
    lacking = [column for column in wanted or () if column in first.columns and column not in opened.columns]
    if not lacking:
        return None
    listed = ", ".join(f"`{column}`" for column in lacking)
    expected = f"the columns of the first file ({', '.join(first.columns)})"
    fix = f"rename its columns ({', '.join(opened.columns)}), or leave the file out"
    return Problem(f"no column {listed} in this file", expected, fix, name)


def _placed(item: Item, folder: str) -> Item:
    """Return an item whose position includes the folder, for files with the same name."""
    if not folder:
        return item
    if isinstance(item, Problem):
        return replace(item, where=folder + item.where)
    if isinstance(item, FileFormat):
        return item.model_copy(update={"file": folder + item.file})
    return folder + item[0], item[1]


def _one(source: str, split: str, wanted: Collection[str] | None, options: Options) -> Opened:
    path, part = locate(source)
    if path is None:
        return columnar.open_hub(source.partition("#")[0], part or split, wanted)
    if path.is_dir():
        return _folder(path, part, split, wanted, options)
    return _file(path, part, split, wanted, options)


def _folder(path: Path, part: str, split: str, wanted: Collection[str] | None, options: Options) -> Opened:
    if columnar.is_datasets_folder(path):
        return columnar.open_datasets_folder(path, part, split, wanted)
    inner = folder_of_split(path, part, split)
    if inner is not None:
        opened = _folder(inner, "", split, wanted, options)
        return replace(opened, rows=(_in_part(item, inner.name) for item in opened.rows))
    folder = Folder.of(path)
    refuse_both(folder)
    return open_documents(folder, options) if folder.documents else _all(shards(folder, split), split, wanted, options)


def _in_part(item: Item, part: str) -> Item:
    return item.model_copy(update={"part": part}) if isinstance(item, FileFormat) else item


def _file(path: Path, part: str, split: str, wanted: Collection[str] | None, options: Options) -> Opened:
    paths.check_regular_file(path, DataError, FORMATS)
    if is_cached(path):
        return _in_memory(path, split)
    head, stated = head_of(path), by_name(path)
    file_format = by_content(head, path)
    if file_format in ("", "packed"):
        return _text_file(path, head, stated, part, split, wanted, options)
    if part and file_format != "excel":
        raise _no_parts(path, part)
    opened = (
        open_excel(path, part, split, wanted)
        if file_format == "excel"
        else columnar.open_parquet(path, wanted)
        if file_format == "parquet"
        else columnar.open_arrow(path, wanted)
    )
    return opened if file_format == stated else _noting(opened, _misnamed(path, file_format))


def _in_memory(path: Path, split: str) -> Opened:
    """Open rows that were given from Python and written to the cache; they are located by their number, from 1."""
    name = place_of(str(path), split)

    def place(where: str) -> str:
        return f"row {where.rpartition(':')[2]} of {name}"

    def rows() -> Iterator[Item]:
        form = FileFormat(file=name, format="memory")
        for item in json_rows(text_of(path).text + "\n", form, split):
            if isinstance(item, Problem):
                yield replace(item, where=place(item.where))
            else:
                yield item if isinstance(item, FileFormat) else (place(item[0]), item[1])

    return Opened(None, rows())


def _text_file(
    path: Path, head: bytes, stated: str, part: str, split: str, wanted: Collection[str] | None, options: Options
) -> Opened:
    if not head and stated in ("parquet", "excel", "arrow"):
        raise DataError(
            "the file is empty (0 bytes)", expected="at least one row", where=str(path), fix="write it again"
        )
    streamed = _streamed(path, stated, part, options)
    if streamed is not None:
        return streamed
    decoded = text_of(path, encoding=options.encoding)
    file_format = _kind_of_text(decoded.text, stated, wanted or (), options.delimiter)
    if not file_format and stated in ("parquet", "excel", "arrow"):
        refuse_other_formats(head, path)
        problem = f"not a readable {_NAMES[stated]} file (it has no {_NAMES[stated]} header)"
        raise DataError(problem, where=str(path), fix="write it again, or give it the suffix of its format")
    if not file_format:
        raise unknown_format(path)
    notes = [note for note in (decoded.assumed, "" if file_format == stated else _misnamed(path, file_format)) if note]
    form = FileFormat(file=path.name, format=file_format, assumed=tuple(notes), **decoded.as_read())
    if file_format == "json":
        return Opened(None, json_rows(decoded.text, form, split, part, wanted or ()))
    if part:
        raise _no_parts(path, part)
    if file_format == "csv":
        usual = _DELIMITERS.get(suffix(path), ",")
        return open_csv(decoded.text, path.name, form, wanted, options.delimiter, usual)
    row = {"text": decoded.text, "folder": path.absolute().parent.name, "file": path.name}
    return Opened(DOCUMENT_COLUMNS, chain([form], [(path.name, row)]), documents_doubt(path.name))


def _streamed(path: Path, stated: str, part: str, options: Options) -> Opened | None:
    """Open a large file of JSON Lines or a large CSV file line by line; None if it has to be read at once.

    Other JSON, and encodings that are not UTF-8, are recognized only by the whole text.
    """
    if options.stream_from is None or part or path.stat().st_size < options.stream_from:
        return None
    if options.encoding.lower().replace("-", "").replace("_", "") not in ("auto", "utf8", "utf8sig"):
        return None
    try:
        sample, lines = stream_text(path)
    except UnicodeDecodeError:
        return None
    file_format = _kind_of_text(sample, stated, (), options.delimiter)
    form = FileFormat(file=path.name, format=file_format, encoding="utf-8")
    if file_format == "csv":
        return stream_csv(sample, lines, path.name, form, options.delimiter, _DELIMITERS.get(suffix(path), ","))
    if file_format == "json" and is_json_lines(sample):
        return Opened(None, stream_json_lines(lines, form))
    return None


def _kind_of_text(text: str, stated: str, wanted: Collection[str], delimiter: str | None) -> str:
    """Return the format of text: as the name states, unless the content is clearly another."""
    if stated == "json":
        begins = text.lstrip("\ufeff \t\r\n")[:1]
        return "csv" if begins and begins not in "[{" and is_table(text, wanted) else "json"
    if stated == "csv":
        return "json" if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") and starts_with_object(text) else "csv"
    if starts_with_object(text):
        return "json"
    if delimiter is not None or is_table(text, wanted):
        return "csv"
    return "text" if stated == "text" else ""


_NAMES = {"json": "JSON", "csv": "CSV", "text": "text", "parquet": "Parquet", "arrow": "Arrow", "excel": "Excel"}


def _misnamed(path: Path, file_format: str) -> str:
    return f"its name ends in {path.suffix or 'no suffix'}, but its content is {_NAMES[file_format]}: read as such"


def _noting(opened: Opened, note: str) -> Opened:
    """Return a source whose files have one more assumption."""

    def rows() -> Iterator[Item]:
        for item in opened.rows:
            yield item.model_copy(update={"assumed": (*item.assumed, note)}) if isinstance(item, FileFormat) else item

    return replace(opened, rows=rows())


def _no_parts(path: Path, part: str) -> DataError:
    fix = f"write it without #{part}"
    return DataError("a file has no splits", where=str(path), field=f"#{part}", fix=fix)
