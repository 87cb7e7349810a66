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
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fulltune.data import columnar
from fulltune.data.columnar import Opened, RawRow
from fulltune.data.encoding import decode
from fulltune.errors import DataError, Problem

#: What can be read, as messages say it.
FORMATS = ".jsonl, .json, .csv, .tsv, .parquet or .txt"

_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt"})
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LINE_END = re.compile(r"\r\n|\n|\r")


def open_source(source: str, split: str, wanted: Collection[str] | None = None) -> Opened:
    """Open what a config names: a file, a folder, or a hub id; ``name#split`` chooses a split of the last two.

    Args:
        source: As the user wrote it.
        split: The split to take where ``source`` names none.
        wanted: Columns to read, where the format lets others be skipped; None for all.

    Raises:
        DataError: It is not there, is of no known format, or cannot be read at all.
    """
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


def suffix(path: Path) -> str:
    """The lower-case suffix, ``.gz`` looked through."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _locate(source: str) -> tuple[Path | None, str]:
    """The local path, or None for a hub id; and the split that the source names itself."""
    whole = Path(source).expanduser()
    if whole.exists():
        return whole, ""
    name, _, split = source.partition("#")
    if name and Path(name).expanduser().exists():
        return Path(name).expanduser(), split
    if _HUB_ID.fullmatch(name) and suffix(Path(name)) not in _SUFFIXES and not Path(name).parent.is_dir():
        return None, split
    raise _not_there(name)


def _not_there(name: str) -> DataError:
    path = Path(name).expanduser()
    siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    fix = f"did you mean {str(path.with_name(close[0]))!r}?" if close else "check the path"
    return DataError(
        "there is no such file or folder",
        expected=f"{FORMATS}, a folder of .txt files, a `datasets` folder, or a hub id (owner/name)",
        where=name,
        fix=fix,
    )


def _open_folder(path: Path, named_split: str, split: str, wanted: Collection[str] | None) -> Opened:
    if columnar.is_datasets_folder(path):
        return columnar.open_datasets_folder(path, named_split, split, wanted)
    documents = sorted(item for item in path.iterdir() if item.is_file() and suffix(item) == ".txt")
    if not documents:
        files = sorted(item.name for item in path.iterdir() if suffix(item) in _SUFFIXES)
        fix = f"name one file of it: {', '.join(files[:5])}" if files else "name the folder that holds the data"
        raise DataError("no .txt files and no `datasets` folder in here", where=str(path), fix=fix)
    if named_split:
        raise DataError("a folder of .txt files has no splits", where=str(path), fix=f"write it without #{named_split}")
    return Opened(("text",), ((item.name, {"text": _text(item)}) for item in documents))


def _open_file(path: Path, wanted: Collection[str] | None) -> Opened:
    kind, name = suffix(path), path.name
    if kind == ".parquet":
        return columnar.open_parquet(path, wanted)
    if kind in (".jsonl", ".ndjson"):
        return Opened(None, _json_lines(_text(path), name))
    if kind == ".json":
        return Opened(None, _json(_text(path), name))
    if kind in (".csv", ".tsv"):
        return _open_csv(_text(path), name, kind)
    if kind == ".txt":
        return Opened(("text",), iter([(name, {"text": _text(path)})]))
    raise DataError(f"a file of unknown kind ({path.suffix or 'no suffix'})", expected=FORMATS, where=str(path))


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the gzip file is damaged ({error})", where=str(path), fix="fetch it again") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot be read ({reason})", where=str(path), fix="check its permissions") from None
    return decode(data, path.name)


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
    """An array of objects, told by their index from 0 (as in ``jq '.[3]'``); else JSON Lines under another name."""
    try:
        value = json.loads(text, object_pairs_hook=_pairs) if text.strip() else []
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            raise DataError(f"not valid JSON ({error})", expected="an array of objects", where=name) from None
        yield from _json_lines(text, name)
        return
    if isinstance(value, list):
        yield from (_object(item, f"{name}[{index}]") for index, item in enumerate(value))
    else:
        yield _object(value, f"{name}:1")


def _open_csv(text: str, name: str, kind: str) -> Opened:
    rows = _csv_rows(text, name, "\t" if kind == ".tsv" else _separator(text))
    _, header = next(rows, ("", []))
    if isinstance(header, Problem):
        raise DataError(header)
    columns = [column.strip() for column in header]
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(f"two columns are called {repeated[0]!r}", where=f"{name}:1", fix="rename one of them")
    return Opened(tuple(columns), (_csv_row(where, cells, columns) for where, cells in rows))


def _separator(text: str) -> str:
    """A comma, or the semicolon that spreadsheets write where the comma is the decimal sign."""
    header = _LINE_END.split(text, maxsplit=1)[0]
    return ";" if ";" in header and "," not in header else ","


def _csv_rows(text: str, name: str, separator: str) -> Iterator[tuple[str, list[str] | Problem]]:
    """Cells of each row that is not blank, with its first line. Strict: an open quote must not swallow the rest."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        where = f"{name}:{reader.line_num + 1}"
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
    if len(cells) != len(columns):
        fix = "quote cells that hold a separator or a line break"
        return Problem(f"{len(cells)} cells", f"{len(columns)} (as the header has)", fix, where)
    return where, dict(zip(columns, cells, strict=True))
