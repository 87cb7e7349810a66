"""Recognize what a file holds, by its name and by its first bytes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from fulltune.errors import DataError

#: Supported formats, for messages.
FORMATS = ".jsonl, .json, .csv, .tsv, .xlsx, .parquet, .arrow or .txt"

#: Format of a file by its suffix.
_BY_SUFFIX = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".jsonlines"), "json"),
    **dict.fromkeys((".csv", ".tsv", ".tab", ".psv"), "csv"),
    **dict.fromkeys((".txt", ".text"), "text"),
    **dict.fromkeys((".xlsx", ".xlsm"), "excel"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    ".parquet": "parquet",
}

#: Suffixes of compressed text files.
PACKED = (".gz", ".xz", ".bz2")

_SHEET = "save the sheet as .xlsx or as CSV UTF-8"
_UNPACK = "unpack it, and name the file in it"
_UNPICKLE = (
    "if you trust it, load it in Python (unpickling runs code) and pass its rows as data.train, or write them as "
    "JSONL: pandas.DataFrame(rows).to_json('rows.jsonl', orient='records', lines=True)"
)

#: Kinds of files that are zip archives or pickles inside, by suffix.
_BY_OWN_NAME = {
    ".npz": "a NumPy archive",
    ".pt": "a file of torch",
    ".pth": "a file of torch",
    ".xlsx": "a damaged workbook, without sheets",
    ".xlsm": "a damaged workbook, without sheets",
    ".docx": "a Word document",
    ".ods": "an OpenDocument sheet",
    ".odt": "an OpenDocument text",
}

#: Fixes for files in other formats, by suffix.
_ADVICE = {
    **dict.fromkeys((".xls", ".ods", ".xlsb", ".numbers"), _SHEET),
    **dict.fromkeys((".xlsx", ".xlsm"), "open it in a spreadsheet and save it again"),
    **dict.fromkeys((".zip", ".zst", ".7z", ".tar", ".tgz", ".rar"), _UNPACK),
    **dict.fromkeys((".orc", ".avro", ".h5"), "write the rows as Parquet"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".pt", ".pth"), _UNPICKLE),
    **dict.fromkeys((".npy", ".npz"), "write the rows as JSONL or CSV"),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".rtf", ".html", ".md"), "write its text to a .txt file"),
    **dict.fromkeys((".sqlite", ".db"), "export the rows as JSONL or CSV"),
    **dict.fromkeys((".yaml", ".yml", ".xml"), "write the rows as JSONL"),
}

#: First bytes of files that are read, and their format.
_READ = ((b"PAR1", "parquet"), (b"ARROW1\0\0", "arrow"), (b"\xff\xff\xff\xff", "arrow"))

#: First bytes of compressed text.
_PACKED_MARKS = ((b"\x1f\x8b", ".gz"), (b"\xfd7zXZ\0", ".xz"), (b"BZh91AY&SY", ".bz2"))

#: First bytes of files that are not read, their kind, and the fix.
_OTHER = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file", "run `git lfs pull` in its folder"),
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"BZh91AY&SY", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"PAR1", "a Parquet file", _UNPACK),
    (b"PARE", "an encrypted Parquet file", "decrypt it with its key, and write the rows without encryption"),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", _SHEET),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"%PDF-", "a PDF document", "write its text to a .txt file"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"SQLite format 3\0", "a SQLite database", "export the rows as JSONL or CSV"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    *((bytes([0x80, protocol]), "a pickle of Python", _UNPICKLE) for protocol in range(2, 6)),
    (b"\x89HDF", "an HDF5 file", "write the rows as Parquet"),
    (b"\x93NUMPY", "a NumPy array", "write the rows as JSONL or CSV"),
    (b"\x89PNG", "an image", "name a file with text"),
    (b"\xff\xd8\xff", "an image", "name a file with text"),
)

#: Marks that text may begin with too (`ORCID,title`).
_WORDS = (b"ORC", b"PAR1", b"PARE")

_PAGES = (b"<!doctype html", b"<html")


def suffix(path: Path) -> str:
    """Return the lowercase suffix, without that of a compression."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def by_name(path: Path) -> str:
    """Return the format that the name of a file states, or "" if it states none that is read."""
    return _BY_SUFFIX.get(suffix(path), "")


def is_known(path: Path) -> bool:
    """Return True if the name of a file states a format that is read."""
    return bool(by_name(path))


def by_content(head: bytes, path: Path) -> str:
    """Return the format of a binary file by its first bytes, ``packed`` for compressed text, or "" for any other."""
    known = next((name for mark, name in _READ if head.startswith(mark)), "")
    if known == "parquet" and by_name(path) != "parquet" and not re.search(rb"[\0-\x08]", head):
        return ""
    if head.startswith(b"PK\x03\x04") and _is_workbook(path):
        return "excel"
    return known or ("packed" if packing(head) else "")


def packing(head: bytes) -> str:
    """Return the suffix of the compression whose mark the first bytes are, or ""."""
    return next((name for mark, name in _PACKED_MARKS if head.startswith(mark)), "")


def _is_workbook(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("xl/") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def refuse_other_formats(head: bytes, path: Path) -> None:
    """Check by its first bytes that a file is text.

    Raises:
        DataError: The file is of another kind.
    """
    other = next(((what, fix) for mark, what, fix in _OTHER if head.startswith(mark)), None)
    if other is not None and head.startswith(_WORDS) and not re.search(rb"[\0-\x08]", head):
        other = None
    if other is None and head[:100].lstrip().lower().startswith(_PAGES):
        other = ("a web page", "download the file itself (a link to the raw file), not the page about it")
    if other is None and head[257:262] == b"ustar":
        other = ("a tar archive", _UNPACK)
    if other is not None and suffix(path) in _BY_OWN_NAME:
        other = (_BY_OWN_NAME[suffix(path)], _ADVICE[suffix(path)])
    if other is not None:
        raise DataError(f"this is {other[0]}", expected=FORMATS, where=str(path), fix=other[1])


def unknown_format(path: Path) -> DataError:
    """Return the error of a file whose format neither its name nor its content shows."""
    fix = _ADVICE.get(suffix(path), "give it the suffix of its format, or write the rows in one of these formats")
    problem = f"a file of unknown kind ({path.suffix or 'no suffix'})"
    return DataError(problem, expected=FORMATS, where=str(path), fix=fix)
