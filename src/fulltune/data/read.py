"""Files to raw rows: JSON Lines, JSON arrays, CSV, TSV, plain text, and the way to the columnar formats.

A row that cannot be parsed comes out as a :class:`~fulltune.errors.Problem` in its place, so that all of them can be
told at once.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fulltune import machine, paths
from fulltune.data import columnar
from fulltune.data.columnar import Opened, RawRow
from fulltune.data.encoding import decode
from fulltune.errors import DataError, Problem

_LOG = logging.getLogger(__name__)

#: Characters of a name that others are compared with.
_LONGEST_NAME = 500

#: Keys of a JSON object that hold its rows.
_WRAPPERS = ("data", "rows", "records", "examples", "instances", "items")

#: Bytes of memory, where the system does not say.
_USUAL_MEMORY = 16 << 30

#: Text is packed to a tenth; a file that unpacks to more than this many times its size, and to more than a small
#: file, is none.
_DENSEST, _SMALL = 100, 1 << 28

#: What can be read, as messages say it.
FORMATS = ".jsonl, .json, .csv, .tsv, .parquet or .txt"

_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt"})
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LINE_END = re.compile(r"\r\n|\n|\r")


def open_source(source: str | Sequence[str], split: str, wanted: Collection[str] | None = None) -> Opened:
    """Open what a config names: a file, a folder, or a hub id; ``name#split`` chooses a split of the last two. Several
    of them, or the files that a pattern such as ``train-*.parquet`` matches, are read one after another.

    Args:
        source: As the user wrote it.
        split: The split to take where ``source`` names none.
        wanted: Columns to read, where the format lets others be skipped; None for all.

    Raises:
        DataError: It is not there, is of no known format, or cannot be read at all.
    """
    names = [source] if isinstance(source, str) else list(source)
    expanded = [name for part in names for name in _matches(part)]
    if not expanded:
        raise DataError("an empty list", expected="at least one file", field="data")
    return _chained_or_one(expanded, split, wanted)


def source_name(source: str | Sequence[str]) -> str:
    """Return a source as messages and records name it."""
    if isinstance(source, str):
        return source
    return ", ".join(source[:3]) + (f" and {len(source) - 3} more" if len(source) > 3 else "")


def _open_one(source: str, split: str, wanted: Collection[str] | None) -> Opened:
    path, named_split = _locate(source)
    if path is None:
        return columnar.open_hub(source.partition("#")[0], named_split or split, wanted)
    if path.is_dir():
        return _open_folder(path, named_split, split, wanted)
    if named_split:
        raise DataError(
            "a file has no splits", where=source, field=f"#{named_split}", fix=f"write it without #{named_split}"
        )
    return _open_file(path, wanted)


def _matches(name: str) -> list[str]:
    """Return the files that a pattern stands for, or the name itself if it is none."""
    if not any(sign in name for sign in "*?["):
        return [name]
    found = paths.matches(name)
    if not found:
        raise DataError("no file matches this pattern", expected=FORMATS, where=name, fix="check the pattern")
    return found


def _chained(names: Sequence[str], split: str, wanted: Collection[str] | None) -> Opened:
    """Open several sources as one. All are looked up at once, and each is read when its turn comes.

    Raises:
        DataError: Some are not there.
    """
    problems = list[Problem]()
    for name in names:
        try:
            _locate(name)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    first = _open_one(names[0], split, wanted)
    same_name = len({Path(name).name for name in names}) < len(names)

    def rows() -> Iterator[RawRow | Problem]:
        for number, name in enumerate(names):
            opened = _open_one(name, split, wanted) if number else first
            folder = f"{Path(name).parent}/" if same_name else ""
            yield from (_placed(item, folder) for item in opened.rows)

    return Opened(first.columns, rows())


def _placed(item: RawRow | Problem, folder: str) -> RawRow | Problem:
    """Return a row or problem that names the folder of its file, where several files have one name."""
    if not folder:
        return item
    if isinstance(item, Problem):
        return replace(item, where=folder + item.where)
    return folder + item[0], item[1]


def suffix(path: Path) -> str:
    """The lower-case suffix, ``.gz`` looked through."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _locate(source: str) -> tuple[Path | None, str]:
    """Return the local path, or None for a hub id; and the split that the source names itself."""
    if not source.strip():
        raise DataError("an empty path", expected=FORMATS, field="data", fix="name a file")
    whole = paths.user_path(source)
    if paths.exists(whole):
        return whole, ""
    name, _, split = source.partition("#")
    path = paths.user_path(name)
    if name and paths.exists(path):
        return path, split
    if _HUB_ID.fullmatch(name) and suffix(Path(name)) not in _SUFFIXES and not paths.is_folder(path.parent):
        return None, split
    raise _not_there(name)


def _not_there(name: str) -> DataError:
    path = paths.user_path(name)
    siblings = [sibling for sibling in paths.names_in(path.parent) if sibling != path.name]
    close = difflib.get_close_matches(path.name[:_LONGEST_NAME], siblings, n=1)
    fix = f"did you mean {str(path.with_name(close[0]))!r}?" if close else "check the path"
    return DataError(
        "a link to what is not there" if os.path.islink(path) else "there is no such file or folder",
        expected=f"{FORMATS}, a folder of .txt files, a `datasets` folder, or a hub id (owner/name)",
        where=name,
        fix=fix,
    )


def _open_folder(path: Path, named_split: str, split: str, wanted: Collection[str] | None) -> Opened:
    if columnar.is_datasets_folder(path):
        return columnar.open_datasets_folder(path, named_split, split, wanted)
    documents = [path / name for name in paths.files_in(path) if suffix(Path(name)) == ".txt"]
    if not documents:
        return _chained_or_one(_shards(path, named_split or split), split, wanted)
    if named_split:
        raise DataError("a folder of .txt files has no splits", where=str(path), fix=f"write it without #{named_split}")
    return Opened(("text",), ((item.name, {"text": _text(item)}) for item in documents))


#: What the files of a split are called, in folders as the hub has them.
_SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "eval"),
}


def _shards(folder: Path, split: str) -> list[str]:
    """Return the data files of a folder, all of one format: those that are called after the split, or all where no file
    is called after any.

    Raises:
        DataError: There are none, or they are of several formats, or they belong to other splits.
    """
    files = [name for name in paths.files_in(folder) if suffix(Path(name)) in _SUFFIXES]
    wanted = [name for name in files if _is_of(name, split)]
    belongs = any(_is_of(name, known) for name in files for known in _SPLIT_NAMES)
    chosen = wanted or ([] if belongs else files)
    if chosen and len({suffix(Path(name)) for name in chosen}) == 1:
        return [str(folder / name) for name in chosen]
    fix = f"name the files: {', '.join(files[:5])}" if files else "name the folder that holds the data"
    found = f"no .txt files, no `datasets` folder and no files of one format for the split {split!r}"
    raise DataError(found, where=str(folder), fix=fix)


def _is_of(name: str, split: str) -> bool:
    """Return whether a file is called after a split: ``train.jsonl``, ``train-00000-of-00002.parquet``."""
    word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return word in _SPLIT_NAMES.get(split, (split,))


def _chained_or_one(names: Sequence[str], split: str, wanted: Collection[str] | None) -> Opened:
    return _chained(names, split, wanted) if len(names) > 1 else _open_one(names[0], split, wanted)


def _open_file(path: Path, wanted: Collection[str] | None) -> Opened:
    kind, name = suffix(path), path.name
    paths.refuse_special(path, DataError, FORMATS)
    if kind == ".parquet":
        return columnar.open_parquet(path, wanted)
    if kind in (".jsonl", ".ndjson", ".json"):
        return Opened(None, _json(_text(path), name))
    if kind in (".csv", ".tsv"):
        return _open_csv(_text(path), name, kind)
    if kind == ".txt":
        return Opened(("text",), iter([(name, {"text": _text(path)})]))
    raise DataError(f"a file of unknown kind ({path.suffix or 'no suffix'})", expected=FORMATS, where=str(path))


def _text(path: Path) -> str:
    try:
        data = _bytes(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the gzip file is damaged ({error})", where=str(path), fix="fetch it again") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot be read ({reason})", where=str(path), fix="check its permissions") from None
    return decode(data, path.name)


def _bytes(path: Path) -> bytes:
    """Return a file's bytes, unpacked; at most a quarter of the machine's memory, since texts take several times that.

    Raises:
        DataError: It is larger.
    """
    most, size = (machine.memory_bytes() or _USUAL_MEMORY) // 4, path.stat().st_size
    if size <= most:
        is_packed = path.name.lower().endswith(".gz")
        packed = min(most, max(_SMALL, _DENSEST * size)) if is_packed else most
        with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
            data = file.read(packed + 1)
        if len(data) <= packed:
            return data
        if packed < most:
            fix = "unpack it, and look at what it holds"
            raise DataError(f"unpacks to more than {_DENSEST} times its size", where=str(path), fix=fix)
    raise DataError(
        f"more than {most / 2**30:.1f} GiB of text, a quarter of this machine's memory",
        where=str(path),
        fix="cut it into several files, or write it as Parquet, which is read in parts",
    )


def _json_lines(text: str, name: str) -> Iterator[RawRow | Problem]:
    # Not str.splitlines: it also cuts at U+2028 and U+0085, which may stand inside a JSON string.
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if line.strip():
            yield _json_object(line, f"{name}:{number}")


def _json_object(line: str, where: str) -> RawRow | Problem:
    try:
        value = json.loads(line, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        found = "a NUL byte" if "\0" in line else f"not valid JSON ({error.msg} at column {error.colno})"
        return Problem(found, "one JSON object a line", "mend or remove the line", where)
    except (ValueError, RecursionError) as error:
        return Problem(f"JSON that cannot be read ({error})", "one JSON object", "mend or remove the line", where)
    return _object(value, where)


class _Repeating(dict[str, Any]):
    """The keys that a JSON object has more than once, and their values."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a :class:`_Repeating` one where ``json.loads`` would keep the last of several values."""
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return _Repeating({key: [item for name, item in pairs if name == key] for key in repeated})


def _object(value: Any, where: str) -> RawRow | Problem:
    if isinstance(value, _Repeating):
        key, values = next(iter(value.items()))
        found = f"the key {key!r} {len(values)} times"
        return Problem(found, "each key once", "keep the value that is meant", where, key)
    if isinstance(value, dict):
        return where, value
    return Problem(f"a JSON {_JSON_TYPES.get(type(value), 'value')}", "a JSON object", "mend or remove it", where)


_JSON_TYPES = {list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _json(text: str, name: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of one JSON document, of JSON objects one after another, or of JSON Lines; the suffix does not
    decide, since all of these are called both ``.json`` and ``.jsonl``.
    """
    try:
        value = json.loads(text, object_pairs_hook=_pairs) if text.strip() else []
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("[") and suffix(Path(name)) == ".json":
            raise DataError(f"not valid JSON ({error})", expected="an array of objects", where=name) from None
        yield from _objects(text, name) or _json_lines(text, name)
        return
    yield from _document(value, name)


def _document(value: Any, name: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of a JSON document: an array, whose items are numbered from 0 (as in ``jq '.[3]'``), an object
    around one, or a single row.
    """
    key = _wrapping_key(value)
    if key is not None:
        _LOG.info("%s: the rows are those under the key %r", name, key)
        value, name = value[key], f"{name}.{key}"
    if isinstance(value, list):
        yield from (_object(item, f"{name}[{index}]") for index, item in enumerate(value))
    elif isinstance(value, dict) and _is_frame(value):
        found = "a data frame as pandas writes it by columns"
        fix = 'write it by rows: df.to_json(path, orient="records", lines=True)'
        yield Problem(found, "an array of objects", fix, name)
    else:
        yield _object(value, f"{name}:1")


def _wrapping_key(value: Any) -> str | None:
    """Return the key under which an object such as ``{"version": 1, "data": […]}`` has its rows, if there is one."""
    if not isinstance(value, dict) or isinstance(value, _Repeating):
        return None
    lists = [key for key, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)]
    return lists[0] if len(lists) == 1 and lists[0] in _WRAPPERS else None


def _is_frame(value: Mapping[str, Any]) -> bool:
    """Return whether pandas wrote a frame with ``orient`` "columns", "index" or "split"."""
    if {"columns", "data"} <= value.keys():
        return True
    return len(value) > 1 and all(isinstance(part, dict) and part.keys() for part in value.values())


def _objects(text: str, name: str) -> list[RawRow | Problem]:
    """Return objects that follow each other over several lines each, as pretty-printers write them; none if the text is
    anything else.
    """
    decoder, rows, at, line = json.JSONDecoder(object_pairs_hook=_pairs), list[RawRow | Problem](), 0, 1
    if not re.match(r"\s*\{\s*\n", text):
        return []
    while match := _NOT_SPACE.search(text, at):
        line += text.count("\n", at, match.start())
        try:
            value, at = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            return []
        rows.append(_object(value, f"{name}:{line}"))
        line += text.count("\n", match.start(), at)
    return rows


_NOT_SPACE = re.compile(r"\S")


def _open_csv(text: str, name: str, kind: str) -> Opened:
    declared = _DECLARED_SEPARATOR.match(text)
    separator = declared[1] if declared else _separator(text, "\t" if kind == ".tsv" else ",")
    if separator not in (",", "\t"):
        _LOG.info("%s: cells are separated by %r", name, separator)
    rows = _csv_rows(text[declared.end() :] if declared else text, name, separator, 1 if declared else 0)
    place, header = next(rows, (f"{name}:1", []))
    if isinstance(header, Problem):
        raise DataError(header)
    columns = [column.strip() for column in header]
    while len(columns) > 1 and not columns[-1]:
        columns.pop()  # spreadsheets write the empty columns beside a table
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        called = repr(repeated[0]) if repeated[0] else "nothing"
        raise DataError(f"two columns are called {called}", where=place, fix="rename one of them")
    return Opened(tuple(columns), (_csv_row(where, cells, columns) for where, cells in rows))


#: The first line by which Excel is told how cells are separated.
_DECLARED_SEPARATOR = re.compile(r"\"?sep=([^\w\s\"]|\t)\"?[ \t]*(?:\r\n|\n|\r)", re.IGNORECASE)


def _separator(text: str, usual: str) -> str:
    """Return the sign that separates the cells of the header: the most frequent of those in use, outside of quotes."""
    header = re.sub(r'"[^"]*"', "", _LINE_END.split(text.lstrip("\r\n"), maxsplit=1)[0])
    return max((usual, ",", ";", "\t", "|"), key=header.count)


def _csv_rows(text: str, name: str, separator: str, before: int) -> Iterator[tuple[str, list[str] | Problem]]:
    """Yield the cells of each row that is not blank, with its first line; ``before`` lines were cut off.

    Strict: an open quote must not swallow the rest.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        where = f"{name}:{before + reader.line_num + 1}"
        # The limit is the module's own; documents are longer than its default of 128 KiB.
        limit = csv.field_size_limit(max(len(text), 131072))
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield (
                where,
                Problem(f"not valid CSV ({error})", "quotes that are closed and doubled inside", "mend it", where),
            )
            continue
        finally:
            csv.field_size_limit(limit)
        if cells:
            yield where, cells


def _csv_row(where: str, cells: list[str] | Problem, columns: list[str]) -> RawRow | Problem:
    if isinstance(cells, Problem):
        return cells
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) != len(columns):
        fix = "quote cells that hold a separator or a line break"
        return Problem(f"{len(cells)} cells", f"{len(columns)} (as the header has)", fix, where)
    return where, dict(zip(columns, cells, strict=True))
