"""Read the text of a data file: decompressed, limited by the machine's memory, and checked for other kinds of files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from fulltune.data.encoding import decode
from fulltune.errors import DataError
from fulltune.runtime import machine

#: Assumed memory in bytes if the system does not report it.
_USUAL_MEMORY = 16 << 30

#: Text compresses to about a tenth. A file that expands to more than this factor, and to more than a small file, is not
#: accepted.
_DENSEST = 100
_SMALL = 1 << 28

_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it, and name the file in it"

#: First bytes of files that are not text, their kind, and the fix.
_KINDS = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file", "run `git lfs pull` in its folder"),
    (_GZIP, "packed with gzip", _UNPACK),
    (b"PAR1", "a Parquet file", "give it the suffix .parquet"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as CSV UTF-8"),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"%PDF-", "a PDF document", "write its text to a .txt file"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"SQLite format 3\0", "a SQLite database", "export the rows as JSONL or CSV"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"\x93NUMPY", "a NumPy array", "write the rows as JSONL or CSV"),
    (b"\x89PNG", "an image", "name a file with text"),
    (b"\xff\xd8\xff", "an image", "name a file with text"),
)

_PAGES = (b"<!doctype html", b"<html")


def text_of(path: Path) -> str:
    """Return the text of a file, decompressed if it is a gzip file, regardless of its name.

    Raises:
        DataError: The file cannot be read, is not text, or is larger than a quarter of the machine's memory.
    """
    try:
        data = _bytes(path)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError("the gzip file is damaged or cut off", where=str(path), fix="download it again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    refuse_other_kinds(data[:512], path, ".txt", ".jsonl", ".csv")
    return decode(data, path.name)


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the operating system cannot read."""
    reason = error.strerror or str(error)
    return DataError(f"cannot be read ({reason})", where=str(path), fix="check its permissions")


def refuse_other_kinds(head: bytes, path: Path, *expected: str) -> None:
    """Check by its first bytes that a file is of the kind that its name implies.

    Raises:
        DataError: The file is of another kind.
    """
    kind = next(((what, fix) for mark, what, fix in _KINDS if head.startswith(mark)), None)
    if kind is None and head[:100].lstrip().lower().startswith(_PAGES):
        kind = ("a web page", "download the file itself (a link to the raw file), not the page about it")
    if kind is None and head[257:262] == b"ustar":
        kind = ("a tar archive", _UNPACK)
    if kind is not None:
        raise DataError(f"this is {kind[0]}", expected=" or ".join(expected), where=str(path), fix=kind[1])


def _bytes(path: Path) -> bytes:
    """Return the decompressed bytes of a file, at most a quarter of the memory: texts need several times that.

    Raises:
        DataError: The file is larger.
    """
    most = (machine.memory_bytes() or _USUAL_MEMORY) // 4
    size = path.stat().st_size
    if size <= most:
        with path.open("rb") as plain:
            is_packed = plain.read(len(_GZIP)) == _GZIP
        if path.name.lower().endswith(".gz") and not is_packed:
            fix = "download it again, or remove .gz from its name if it is not compressed"
            raise DataError("the gzip file is damaged: it has no gzip header", where=str(path), fix=fix)
        packed = min(most, max(_SMALL, _DENSEST * size)) if is_packed else most
        with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
            data = file.read(packed + 1)
        if len(data) <= packed:
            return data
        if packed < most:
            fix = "decompress it, and check its contents"
            raise DataError(f"unpacks to more than {_DENSEST} times its size", where=str(path), fix=fix)
    raise DataError(
        f"more than {most / 2**30:.1f} GiB of text, a quarter of this machine's memory",
        where=str(path),
        fix="split it into several files, or write it as Parquet, which is read in parts",
    )
