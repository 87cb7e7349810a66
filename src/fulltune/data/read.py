"""Files to raw rows: JSON Lines, JSON arrays, CSV, TSV, plain text, and the way to the columnar formats.

A row that cannot be parsed comes out as a :class:`~fulltune.errors.Problem` in its place, so that all of them can be
told at once.
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

#: Characters of a name that others are compared with.
_LONGEST_NAME = 500

#: What can be read, as messages say it.
FORMATS = ".jsonl, .json, .csv, .tsv, .parquet or .txt"

_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt"})
_JSON = frozenset({".jsonl", ".ndjson", ".json"})
_SHEET, _UNPACK = "save the sheet as CSV UTF-8", "unpack it, and name the file in it"

#: What to do about files that hold rows in other formats, by suffix.
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
    expanded = _once([name for part in names for name in _matches(part)])
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
    if named_split and suffix(path) not in _JSON:
        raise DataError(
            "a file has no splits", where=source, field=f"#{named_split}", fix=f"write it without #{named_split}"
        )
    return _open_file(path, split, named_split, wanted)


def _matches(name: str) -> list[str]:
    """Return the files that a pattern stands for, or the name itself if it is none."""
    if not any(sign in name for sign in "*?["):
        return [name]
    found = paths.matches(name)
    if not found:
        raise DataError("no file matches this pattern", expected=FORMATS, where=name, fix="check the pattern")
    return found


def _once(names: Sequence[str]) -> list[str]:
    """Return the names without those of files that come earlier, as patterns that overlap have them."""
    first = dict[str, str]()
    for name in names:
        path = paths.user_path(name)
        kept = first.setdefault(os.path.realpath(path) if paths.exists(path) else name, name)
        if kept is not name:
            _LOG.warning("%s is read once, although it is named again as %s", kept, name)
    return list(first.values())


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
            if opened.doubt is not None and not set(opened.columns or ()) & set(wanted or ()):
                raise DataError(opened.doubt)
            folder = f"{Path(name).parent}/" if same_name else ""
            yield from (_placed(item, folder) for item in opened.rows)

    return Opened(first.columns, rows(), first.doubt)


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
    fix = f"did you mean {str(path.with_name(close[0]))!r}?" if close else _advice(name)
    return DataError(
        "a link to what is not there" if os.path.islink(path) else "there is no such file or folder",
        expected=f"{FORMATS}, a folder of .txt files, a `datasets` folder, or a hub id (owner/name)",
        where=name,
        fix=fix,
    )


def _advice(name: str) -> str:
    """Return what to do about a name that is no path here, but something else."""
    if any(sign < " " for sign in name):
        return "a backslash in double quotes begins an escape: use single quotes, or / in paths"
    if name.startswith("file:"):
        return "write the path without file://"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        return "this is an address: fetch the file, and write its path"
    if re.fullmatch(r"[0-9.,]+ *%?", name):
        return "a fraction of train is a number without quotes, such as 0.1"
    if re.search(r"\$\w|\$\{|%\w+%", name):
        return "write the path itself: variables of the environment are not replaced"
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
    """Return the data files of a folder, all of one format: those that are called after the split, or all where no file
    is called after any.

    Raises:
        DataError: There are none, or they are of several formats, or they belong to other splits.
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
    found = f"no .txt files, no `datasets` folder and no files of one format for the split {split!r}"
    raise DataError(found, where=str(folder), fix=fix)


def _is_of(name: str, split: str) -> bool:
    """Return whether a file is called after a split: ``train.jsonl``, ``train-00000-of-00002.parquet``."""
    word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return word in SPLIT_NAMES.get(split, (split,))


def _chained_or_one(names: Sequence[str], split: str, wanted: Collection[str] | None) -> Opened:
    return _chained(names, split, wanted) if len(names) > 1 else _open_one(names[0], split, wanted)


def _open_file(path: Path, split: str, named_split: str, wanted: Collection[str] | None) -> Opened:
    kind, name = suffix(path), path.name
    paths.check_regular_file(path, DataError, FORMATS)
    if kind == ".parquet":
        return _open_parquet(path, wanted)
    if kind in _JSON:
        return Opened(None, json_rows(text_of(path), name, split, named_split))
    if kind in (".csv", ".tsv"):
        return open_csv(text_of(path), name, kind, wanted)
    if kind == ".txt":
        return Opened(("text",), iter([(name, {"text": text_of(path)})]), _documents(name))
    fix = _ADVICE.get(kind, "give it the suffix of what it is, or write the rows in one of these formats")
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
        raise DataError("an empty file, of 0 bytes", expected="at least one row", where=str(path), fix="write it again")
    if not head.startswith(b"PAR1"):
        refuse_other_kinds(head, path, ".parquet")
        found = "not a readable Parquet file (it does not begin as one)"
        raise DataError(found, where=str(path), fix="write it again, or give it the suffix of what it is")
    return columnar.open_parquet(path, wanted)


def _documents(name: str) -> Problem:
    """Return the problem of text files where a task reads more columns than one."""
    found = "plain text: each file is one document, in the column `text`"
    return Problem(found, "rows with columns", "write them as .jsonl or .csv", name)
