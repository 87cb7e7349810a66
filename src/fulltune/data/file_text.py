"""The text of a data file: unpacked, bounded by the machine's memory, and no other kind of file under its name."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from fulltune.data.encoding import decode
from fulltune.errors import DataError
from fulltune.runtime import machine

#: Bytes of memory, where the system does not say.
_USUAL_MEMORY = 16 << 30

#: Text is packed to a tenth; a file that unpacks to more than this many times its size, and to more than a small
#: file, is none.
_DENSEST, _SMALL = 100, 1 << 28

_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it, and name the file in it"

#: First bytes of files that are no text, what they are, and what to do.
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
    """Return the text of a file, unpacked where it is a gzip file, whatever its name.

    Raises:
        DataError: It cannot be read, is no text, or is larger than a quarter of the machine's memory.
    """
    try:
        data = _bytes(path)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError("the gzip file is damaged or cut off", where=str(path), fix="fetch it again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    refuse_other_kinds(data[:512], path, ".txt", ".jsonl", ".csv")
    return decode(data, path.name)


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the system does not let us read."""
    reason = error.strerror or str(error)
    return DataError(f"cannot be read ({reason})", where=str(path), fix="check its permissions")


def refuse_other_kinds(head: bytes, path: Path, *expected: str) -> None:
    """Check by its first bytes that a file is not of another kind than its name says.

    Raises:
        DataError: It is.
    """
    kind = next(((what, fix) for mark, what, fix in _KINDS if head.startswith(mark)), None)
    if kind is None and head[:100].lstrip().lower().startswith(_PAGES):
        kind = ("a web page", "fetch the file itself (a link to the raw file), not the page about it")
    if kind is None and head[257:262] == b"ustar":
        kind = ("a tar archive", _UNPACK)
    if kind is not None:
        raise DataError(f"this is {kind[0]}", expected=" or ".join(expected), where=str(path), fix=kind[1])


def _bytes(path: Path) -> bytes:
    """Return a file's bytes, unpacked; at most a quarter of the machine's memory, since texts take several times that.

    Raises:
        DataError: It is larger.
    """
    most, size = (machine.memory_bytes() or _USUAL_MEMORY) // 4, path.stat().st_size
    if size <= most:
        with path.open("rb") as plain:
            is_packed = plain.read(len(_GZIP)) == _GZIP
        if path.name.lower().endswith(".gz") and not is_packed:
            fix = "fetch it again, or take .gz off its name if it is not packed"
            raise DataError("the gzip file is damaged: it does not begin as one", where=str(path), fix=fix)
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
