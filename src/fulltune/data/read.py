"""Open files as raw rows: JSON Lines, JSON arrays, CSV, TSV and plain text; columnar formats are delegated.

A row that cannot be parsed is replaced by a :class:`~fulltune.errors.Problem`, so that all problems are reported at
once.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fulltune.data import columnar
from fulltune.data.columnar import Opened, RawRow
from fulltune.data.csv_rows import open_csv
from fulltune.data.file_text import refuse_other_kinds, text_of, unreadable
from fulltune.data.json_rows import SPLIT_NAMES, json_rows
from fulltune.errors import DataError, Problem
from fulltune.runtime import paths

_LOG = logging.getLogger(__name__)

#: Longest name, in characters, that is compared with others.
_LONGEST_NAME = 500

#: Supported formats, for messages.
FORMATS = ".jsonl, .json, .csv, .tsv, .parquet or .txt"

_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt"})
_JSON = frozenset({".jsonl", ".ndjson", ".json"})
_SHEET = "save the sheet as CSV UTF-8"
_UNPACK = "unpack it, and name the file in it"

#: Fixes for files in other formats, by suffix.
_ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), _SHEET),
    **dict.fromkeys((".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz", ".rar"), _UNPACK),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro", ".pkl", ".pickle", ".h5"), "write the rows as Parquet"),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".rtf", ".html", ".md"), "write its text to a .txt file"),
    **dict.fromkeys((".sqlite", ".db"), "export the rows as JSONL or CSV"),
    **dict.fromkeys((".yaml", ".yml", ".xml"), "write the rows as JSONL"),
}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def open_source(source: str | Sequence[str], split: str, wanted: Collection[str] | None = None) -> Opened:
    """Open a source of a config: a file, a folder, or a hub id; ``name#split`` selects a split of the last two.

    Several sources, or the files that a pattern such as ``train-*.parquet`` matches, are read one after another.

    Args:
        source: As written by the user.
        split: The split to read if ``source`` names none.
        wanted: Columns to read if the format allows skipping others; None for all.

    Raises:
        DataError: The source does not exist, has an unknown format, or cannot be read.
    """
    names = [source] if isinstance(source, str) else list(source)
    expanded = _once([name for part in names for name in _matches(part)])
    if not expanded:
        raise DataError("an empty list", expected="at least one file", field="data")
    return _chained_or_one(expanded, split, wanted)


def source_name(source: str | Sequence[str]) -> str:
    """Return the name of a source for messages and records."""
    if isinstance(source, str):
        return source
    return ", ".join(source[:3]) + (f" and {len(source) - 3} more" if len(source) > 3 else "")


def _open_one(source: str, split: str, wanted: Collection[str] | None) -> Opened:
    path, named_split = _locate(source)
    if path is None:
        return columnar.open_hub(source.partition("#")[0], named_split or split, wanted)
    if path.is_dir():
        return _open_folder(path, named_split, split, wanted)
    if named_split and suffix(path) not in _JSON:
        raise DataError(
            "a file has no splits", where=source, field=f"#{named_split}", fix=f"write it without #{named_split}"
        )
    return _open_file(path, split, named_split, wanted)


def _matches(name: str) -> list[str]:
    """Return the files that match a pattern, or the name itself if it is not a pattern."""
    if not any(sign in name for sign in "*?["):
        return [name]
    matches = paths.matches(name)
    if not matches:
        raise DataError("no file matches this pattern", expected=FORMATS, where=name, fix="check the pattern")
    return matches


def _once(names: Sequence[str]) -> list[str]:
    """Return the names without repeated files, such as those of overlapping patterns."""
    first = dict[str, str]()
    for name in names:
        path = paths.user_path(name)
        kept = first.setdefault(os.path.realpath(path) if paths.exists(path) else name, name)
        if kept is not name:
            _LOG.warning("%s is read once, although it is also named as %s", kept, name)
    return list(first.values())


def _chained(names: Sequence[str], split: str, wanted: Collection[str] | None) -> Opened:
    """Open several sources as one. All are located first; each is opened when its turn comes.

    Raises:
        DataError: Some of them do not exist.
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
            if opened.doubt is not None and not set(opened.columns or ()) & set(wanted or ()):
                raise DataError(opened.doubt)
            folder = f"{Path(name).parent}/" if same_name else ""
            yield from (_placed(item, folder) for item in opened.rows)

    return Opened(first.columns, rows(), first.doubt)


def _placed(item: RawRow | Problem, folder: str) -> RawRow | Problem:
    """Return a row or problem whose position includes the folder, for files with the same name."""
    if not folder:
        return item
    if isinstance(item, Problem):
        return replace(item, where=folder + item.where)
    return folder + item[0], item[1]


def suffix(path: Path) -> str:
    """Return the lowercase suffix, ignoring ``.gz``."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _locate(source: str) -> tuple[Path | None, str]:
    """Return the local path, or None for a hub id, and the split that the source names."""
    if not source.strip():
        raise DataError("an empty path", expected=FORMATS, field="data", fix="name a file")
    path = paths.user_path(source)
    if paths.exists(path):
        return path, ""
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
    fix = f"did you mean {str(path.with_name(close[0]))!r}?" if close else _advice(name)
    return DataError(
        "a broken link" if os.path.islink(path) else "there is no such file or folder",
        expected=f"{FORMATS}, a folder of .txt files, a `datasets` folder, or a hub id (owner/name)",
        where=name,
        fix=fix,
    )


def _advice(name: str) -> str:
    """Return the fix for a name that is not a path but something else."""
    if any(sign < " " for sign in name):
        return "a backslash in double quotes starts an escape sequence: use single quotes, or / in paths"
    if name.startswith("file:"):
        return "write the path without file://"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        return "this is a URL: download the file, and write its path"
    if re.fullmatch(r"[0-9.,]+ *%?", name):
        return "a fraction of train is a number without quotes, such as 0.1"
    if re.search(r"\$\w|\$\{|%\w+%", name):
        return "write the path itself: environment variables are not expanded"
    if "\\" in name and paths.exists(paths.user_path(name.replace("\\", "/"))):
        return f"did you mean {name.replace(chr(92), '/')!r}?"
    return "check the path"


def _open_folder(path: Path, named_split: str, split: str, wanted: Collection[str] | None) -> Opened:
    if columnar.is_datasets_folder(path):
        return columnar.open_datasets_folder(path, named_split, split, wanted)
    documents = [path / name for name in paths.files_in(path) if suffix(Path(name)) == ".txt"]
    if not documents:
        return _chained_or_one(_shards(path, named_split or split), split, wanted)
    if named_split:
        raise DataError("a folder of .txt files has no splits", where=str(path), fix=f"write it without #{named_split}")
    rows = ((item.name, {"text": text_of(item)}) for item in documents)
    return Opened(("text",), rows, _documents(str(path)))


def _shards(folder: Path, split: str) -> list[str]:
    """Return the data files of a folder, all of one format: those named after the split, or all if none is named so.

    Raises:
        DataError: There are no such files, they have several formats, or they belong to other splits.
    """
    files = [name for name in paths.files_in(folder) if suffix(Path(name)) in _SUFFIXES]
    wanted = [name for name in files if _is_of(name, split)]
    belongs = any(_is_of(name, known) for name in files for known in SPLIT_NAMES)
    chosen = wanted or ([] if belongs else files)
    if chosen and len({suffix(Path(name)) for name in chosen}) == 1:
        return [str(folder / name) for name in chosen]
    inner = [name for name in paths.names_in(folder) if paths.is_folder(folder / name)]
    fix = f"name a folder in it: {', '.join(inner[:5])}" if inner else "name the folder that holds the data"
    fix = f"name the files: {', '.join(files[:5])}" if files else fix
    problem = f"no .txt files, no `datasets` folder and no files of one format for the split {split!r}"
    raise DataError(problem, where=str(folder), fix=fix)


def _is_of(name: str, split: str) -> bool:
    """Return True if a file is named after a split: ``train.jsonl``, ``train-00000-of-00002.parquet``."""
    word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return word in SPLIT_NAMES.get(split, (split,))


def _chained_or_one(names: Sequence[str], split: str, wanted: Collection[str] | None) -> Opened:
    return _chained(names, split, wanted) if len(names) > 1 else _open_one(names[0], split, wanted)


def _open_file(path: Path, split: str, named_split: str, wanted: Collection[str] | None) -> Opened:
    kind = suffix(path)
    name = path.name
    paths.check_regular_file(path, DataError, FORMATS)
    if kind == ".parquet":
        return _open_parquet(path, wanted)
    if kind in _JSON:
        return Opened(None, json_rows(text_of(path), name, split, named_split))
    if kind in (".csv", ".tsv"):
        return open_csv(text_of(path), name, kind, wanted)
    if kind == ".txt":
        return Opened(("text",), iter([(name, {"text": text_of(path)})]), _documents(name))
    fix = _ADVICE.get(kind, "give it the suffix of its format, or write the rows in one of these formats")
    raise DataError(
        f"a file of unknown kind ({path.suffix or 'no suffix'})", expected=FORMATS, where=str(path), fix=fix
    )


def _open_parquet(path: Path, wanted: Collection[str] | None) -> Opened:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise unreadable(path, error) from None
    if not head:
        raise DataError(
            "the file is empty (0 bytes)", expected="at least one row", where=str(path), fix="write it again"
        )
    if not head.startswith(b"PAR1"):
        refuse_other_kinds(head, path, ".parquet")
        problem = "not a readable Parquet file (it has no Parquet header)"
        raise DataError(problem, where=str(path), fix="write it again, or give it the suffix of its format")
    return columnar.open_parquet(path, wanted)


def _documents(name: str) -> Problem:
    """Return the problem of text files for a task that reads more than one column."""
    problem = "plain text: each file is one document, in the column `text`"
    return Problem(problem, "rows with columns", "write them as .jsonl or .csv", name)
