"""Sort the files that a user names into train, valid, eval and databases."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fulltune.data.columnar import is_datasets_folder
from fulltune.data.columns.roles import SPLITS
from fulltune.data.folders import Folder
from fulltune.data.formats import FORMATS, by_name, suffix
from fulltune.errors import DataError, Problem
from fulltune.runtime import paths

_SQLITE = b"SQLite format 3\0"

#: Databases that a message lists.
_SHOWN = 8

#: Usual endings of SQLite files.
_DATABASE_ENDINGS = frozenset({".db", ".db3", ".sqlite", ".sqlite3"})


@dataclass(frozen=True)
class Sources:
    """Files by split.

    Attributes:
        train: Files of the training rows, or of all rows.
        valid: Files of the evaluation curve; empty if there are none.
        eval: Files of the rows that decide; empty if there are none.
        databases: SQLite files.
        others: Further data sets in the same folder, by name.
        ignored: Files that are not rows.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    databases: tuple[Path, ...] = ()
    others: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def splits(self) -> dict[str, tuple[str, ...]]:
        """Return the files of each split that has any."""
        named = {"train": self.train, "valid": self.valid, "eval": self.eval}
        return {name: files for name, files in named.items() if files}


def sort_sources(names: Sequence[str]) -> Sources:
    """Sort files, folders and patterns by what their names and contents say.

    Raises:
        DataError: There are no rows: nothing is named, or databases alone.
    """
    given = [path for name in names for path in paths.matches(name) or [name]]
    if not given:
        raise DataError("no data", expected=FORMATS, fix="name a file or a folder: fulltune init DATA")
    _check_databases(given)
    databases = [Path(name) for name in given if is_database(Path(name))]
    rest = [name for name in given if not is_database(Path(name))]
    sources = _of_folder(Path(rest[0])) if len(rest) == 1 and _is_plain_folder(Path(rest[0])) else _of_files(rest)
    if not sources.train:
        raise _nothing(given, databases)
    near = databases or list(_databases_near(Path(sources.train[0])))
    return Sources(sources.train, sources.valid, sources.eval, tuple(near), sources.others, sources.ignored)


def missing_database(name: str, names: Sequence[str]) -> Problem | None:
    """Return the problem of a database that does not exist, with those next to it and to the other ``names``."""
    path = paths.user_path(name)
    if path.suffix.lower() not in _DATABASE_ENDINGS or paths.exists(path):
        return None
    places = dict.fromkeys(paths.user_path(one).parent for one in (name, *names))
    found = [str(one) for place in places for one in _databases_near(place / "any")]
    shown = ", ".join(dict.fromkeys(found[:_SHOWN])) + (" …" if len(found) > _SHOWN else "")
    fix = f"databases found there: {shown}" if found else "no SQLite database is next to it: correct the path"
    return Problem("there is no such database", "a SQLite file", fix, name)


def _check_databases(names: Sequence[str]) -> None:
    """Check that files with the ending of a database are databases.

    Raises:
        DataError: Some are not; lists all of them.
    """
    fix = "name the database itself, or convert it (a dump: sqlite3 company.db < dump.sql)"
    problems = [
        Problem("this is no SQLite database", "a file that begins with 'SQLite format 3'", fix, name)
        for name in names
        if Path(name).suffix.lower() in _DATABASE_ENDINGS and Path(name).is_file() and not is_database(Path(name))
    ]
    if problems:
        raise DataError(problems)


def is_database(path: Path) -> bool:
    """Return True for a SQLite file, whatever its name; opening a named pipe would wait for its writer."""
    if not paths.is_file(path):
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except (OSError, ValueError):
        return False


def split_of(name: str) -> str:
    """Return the split that a file or folder is named after: ``train``, ``valid``, ``eval``, or an empty text."""
    words = _words(name)
    return next((split for split, known in SPLITS.items() if known & set(words)), "")


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z]+", Path(name).name.lower()) if word]


def _data_set(name: str) -> str:
    """Return the name of a file without its split, its endings and the numbers of shards."""
    stem = Path(name).name.lower().split(".gz")[0]
    stem = stem[: len(stem) - len(Path(stem).suffix)]
    known = set[str]().union(*SPLITS.values())
    words = [word for word in re.split(r"[^a-z0-9]+", stem) if word and not re.fullmatch(r"\d{3,}|of", word)]
    return "_".join(word for word in words if word not in known)


def _of_files(names: Sequence[str]) -> Sources:
    by_split = defaultdict[str, list[str]](list)
    for name in names:
        by_split[split_of(name)].append(name)
    if len(names) == 1 or not by_split["train"]:
        return Sources(tuple(names))
    train = by_split["train"] + by_split[""]
    if not by_split["eval"]:  # without a test set the development set decides
        return Sources(tuple(train), (), tuple(by_split["valid"]))
    return Sources(tuple(train), tuple(by_split["valid"]), tuple(by_split["eval"]))


def _is_plain_folder(path: Path) -> bool:
    return paths.is_folder(path) and not is_datasets_folder(path)


def _of_folder(folder: Path) -> Sources:
    """Return the sources in a folder: the largest data set whose files are named alike, folders by split, or texts."""
    files = [folder / name for name in paths.files_in(folder)]
    rows = [file for file in files if _has_rows(file)]
    if rows:
        return _largest(folder, rows, files)
    inner = [path for path in paths.inner_folders(folder) if path.name[0] != "."]
    if any(split_of(path.name) == "train" for path in inner):
        named = [str(path) for path in inner if split_of(path.name)]
        return _of_files(named)
    if any(_has_texts(folder)):
        return Sources((str(folder),))
    nested = [path for path in inner if any(_has_rows(Path(name)) for name in paths.files_in(path))]
    if nested:
        sources = _of_folder(nested[0])
        others = (*sources.others, *(str(path) for path in nested[1:]))
        return Sources(sources.train, sources.valid, sources.eval, (), others, sources.ignored)
    return Sources(())


def _largest(folder: Path, rows: Sequence[Path], files: Sequence[Path]) -> Sources:
    """Return the data set with a training file and the most bytes; JSON files next to JSON Lines are descriptions."""
    kinds = {suffix(file) for file in rows}
    if len(kinds) > 1:
        rows = [file for file in rows if suffix(file) != ".json"]
    sets = defaultdict[str, list[Path]](list)
    for file in rows:
        sets[f"{_data_set(file.name)}{suffix(file)}"].append(file)
    ranked = sorted(sets.values(), key=lambda one: (_has_train(one), sum(map(_size, one))), reverse=True)
    chosen = _of_files([str(file) for file in ranked[0]])
    others = tuple(" ".join(str(file) for file in one) for one in ranked[1:])
    known = {file for one in ranked for file in one}
    ignored = tuple(file.name for file in files if file not in known and not is_database(file))
    return Sources(chosen.train, chosen.valid, chosen.eval, (), others, ignored)


def _has_train(files: Iterable[Path]) -> bool:
    return any(split_of(file.name) == "train" for file in files)


def _size(path: Path) -> int:
    return path.stat().st_size


def _has_rows(path: Path) -> bool:
    return by_name(path) not in ("", "text")


def _has_texts(folder: Path) -> Iterator[bool]:
    for parent, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not paths.is_own(Path(parent, name))]
        yield from (True for name in names if by_name(Path(name)) == "text")


def _databases_near(source: Path) -> Iterator[Path]:
    """Yield the SQLite files in the folder of a file and in the folders in it, except fulltune's own registry."""
    folder = source if source.is_dir() else source.parent
    inner = paths.inner_folders(folder)
    places = [folder, *inner, *(path for one in inner for path in paths.inner_folders(one))]
    for place in places:
        yield from (place / name for name in paths.files_in(place) if is_database(place / name))


def _nothing(given: Sequence[str], databases: Sequence[Path]) -> DataError:
    if databases:
        return DataError(
            "a database without questions",
            expected="a file with the columns question and sql as well",
            where=str(databases[0]),
            fix=f"name both: fulltune init questions.csv {databases[0]}",
        )
    seen = Folder.of(Path(given[0])).seen if len(given) == 1 and paths.is_folder(Path(given[0])) else ""
    fix = "write their texts to .txt files, or name the files" if seen else "name the files"
    return DataError(f"no file with rows or text{seen}", expected=FORMATS, where=", ".join(given[:3]), fix=fix)
