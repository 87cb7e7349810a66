"""Open folders: of text documents, or of data files of one format, with all subfolders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fulltune.data.file_text import text_of, unreadable
from fulltune.data.formats import by_name
from fulltune.data.raw import Item, Opened, Options
from fulltune.errors import DataError, Problem, did_you_mean
from fulltune.records.run import FileFormat
from fulltune.runtime import paths
from fulltune.runtime.split_names import SPLIT_NAMES

#: Columns of a folder of text documents: the text, the first folder below the source, and the path below it.
DOCUMENT_COLUMNS = ("text", "folder", "file")

#: Number of names in a message.
_SHOWN = 5


@dataclass(frozen=True)
class Folder:
    """The files of a folder and its subfolders, as paths below it.

    Attributes:
        path: The folder.
        documents: Its text documents.
        tables: Its files of rows.
        unread: All others.
    """

    path: Path
    documents: tuple[str, ...]
    tables: tuple[str, ...]
    unread: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Folder:
        files = sorted(_files(path))
        documents = tuple(name for name in files if by_name(Path(name)) == "text")
        tables = tuple(name for name in files if by_name(Path(name)) not in ("", "text"))
        unread = tuple(name for name in files if not by_name(Path(name)))
        return cls(path, documents, tables, unread)

    @property
    def seen(self) -> str:
        """Its files that cannot be read, for a message; empty if there are none."""
        if not self.unread:
            return ""
        names = ", ".join(self.unread[:_SHOWN]) + (", …" if len(self.unread) > _SHOWN else "")
        return f"; it has {_counted(self.unread)}: {names}"


def folder_of_split(path: Path, part: str, split: str) -> Path | None:
    """Return the subfolder for a split, if all files are in subfolders and one of these is named after the split.

    Raises:
        DataError: The subfolder that the user named does not exist.
    """
    names = _subfolders(path)
    known = {name for names in SPLIT_NAMES.values() for name in names}
    if part:
        if part not in names:
            if not names:
                raise DataError("the folder has no splits", where=str(path), fix=f"write it without #{part}")
            fix = did_you_mean(part, names) or "choose one of these"
            raise DataError(f"no subfolder {part!r}", expected=f"one of {', '.join(names)}", where=str(path), fix=fix)
        return path / part
    if any(by_name(Path(file)) for file in _names(path, folders=False)):
        return None
    if not names or not all(name.lower() in known for name in names):
        return None
    wanted = SPLIT_NAMES.get(split, (split,))
    return next((path / name for name in names if name.lower() in wanted), None)


def open_documents(folder: Folder, options: Options) -> Opened:
    """Open the text documents of a folder, one row each: ``text``, ``folder`` and ``file``."""

    def rows() -> Iterator[Item]:
        if folder.unread:
            verb = "is" if len(folder.unread) == 1 else "are"
            note = f"{_counted(folder.unread)} {verb} not read, because only .txt files are documents"
            yield FileFormat(file=str(folder.path), format="folder", assumed=(note,))
        for name in folder.documents:
            decoded = text_of(folder.path / name, name, options.encoding)
            assumed = (decoded.assumed,) if decoded.assumed else ()
            yield FileFormat(file=name, format="text", assumed=assumed, **decoded.as_read())
            parts = Path(name).parts
            yield name, {"text": decoded.text, "folder": parts[0] if len(parts) > 1 else "", "file": name}

    return Opened(DOCUMENT_COLUMNS, rows(), documents_doubt(str(folder.path)))


def shards(folder: Folder, split: str) -> list[str]:
    """Return the data files of a folder, all of one format: those named after the split, or all if none is named so.

    Raises:
        DataError: There are no such files, they have several formats, or they belong to other splits.
    """
    files = folder.tables
    wanted = [name for name in files if _is_of(name, split)]
    belongs = any(_is_of(name, known) for name in files for known in SPLIT_NAMES)
    chosen = wanted or ([] if belongs else files)
    if chosen and len({by_name(Path(name)) for name in chosen}) == 1:
        return [str(folder.path / name) for name in chosen]
    inner = _subfolders(folder.path)
    fix = f"name a folder in it: {', '.join(inner[:_SHOWN])}" if inner else "name the folder that holds the data"
    fix = f"name the files: {', '.join(files[:_SHOWN])}" if files else fix
    problem = f"no .txt files, no `datasets` folder and no files of one format for the split {split!r}{folder.seen}"
    raise DataError(problem, where=str(folder.path), fix=fix)


def refuse_both(folder: Folder) -> None:
    """Check that a folder has documents or files of rows, not both: one of them would be left out.

    Raises:
        DataError: It has both.
    """
    if folder.documents and folder.tables:
        raise DataError(
            f"both text documents ({folder.documents[0]}, {len(folder.documents)} in all) and files of rows "
            f"({folder.tables[0]}, {len(folder.tables)} in all)",
            expected="either documents or files of rows",
            where=str(folder.path),
            fix=f"name the files by a pattern: {folder.path}/**/*.txt or "
            f"{folder.path}/**/*{Path(folder.tables[0]).suffix}",
        )


def documents_doubt(name: str) -> Problem:
    """Return the problem of text files for a task that reads more than one column."""
    problem = "plain text: each file is one document, in the column `text`"
    fix = "write them as .jsonl or .csv; for labels that are the names of subfolders set `data.label: folder`"
    return Problem(problem, "rows with columns", fix, name)


def _counted(names: Sequence[str]) -> str:
    """Return the number of files of each ending, such as ``3 files (2 .docx, 1 .md)``."""
    endings = Counter(Path(name).suffix.lower() or "without an ending" for name in names)
    kinds = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common())
    return f"{len(names):,} file{'s' * (len(names) != 1)} ({kinds})"


def _is_of(name: str, split: str) -> bool:
    """Return True if a file or its folder is named after a split, as ``train.jsonl`` or ``train-00-of-02.parquet``."""
    words = (re.split(r"[^a-z]", part.lower(), maxsplit=1)[0] for part in Path(name).parts)
    return any(word in SPLIT_NAMES.get(split, (split,)) for word in words)


def _files(folder: Path) -> Iterator[str]:
    """Yield the regular files of a folder and its subfolders, except hidden ones and runs; links are followed once.

    Raises:
        DataError: A subfolder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(Path(str(error.filename)), error)

    visited = set[str]()
    for parent, inner, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in visited:
            inner.clear()
            continue
        shown = [name for name in inner if not name.startswith((".", "__MACOSX"))]
        inner[:] = [name for name in shown if not paths.is_own(Path(parent, name))]
        visited.add(real)
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix()


def _subfolders(folder: Path) -> list[str]:
    return [name for name in _names(folder, folders=True) if name != "__MACOSX"]


def _names(folder: Path, *, folders: bool) -> list[str]:
    """Return the sorted names of the folders, or of the files, in a folder; none that are hidden."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from None
    return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir() == folders]
