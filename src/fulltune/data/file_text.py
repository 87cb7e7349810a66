"""Read the text of a data file: decompressed, limited by the machine's memory, and checked for other kinds of files."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from fulltune.data.encoding import Decoded, decode
from fulltune.data.formats import packing, refuse_other_formats
from fulltune.errors import DataError
from fulltune.runtime import machine

#: Assumed memory in bytes if the system does not report it.
_USUAL_MEMORY = 16 << 30

#: Text compresses to about a tenth. A file that expands to more than this factor, and to more than a small file, is not
#: accepted.
_DENSEST = 100
_SMALL = 1 << 28

#: Number of bytes from which a file that is read line by line is recognized.
_SAMPLE = 1 << 22

#: Number of bytes that are read at a time.
_PART = 1 << 24

_TOOLS = {".gz": "gzip", ".xz": "xz", ".bz2": "bzip2"}


def text_of(path: Path, name: str = "", encoding: str = "auto") -> Decoded:
    """Return the text of a file, decompressed if it is compressed, regardless of its name.

    Args:
        path: The file.
        name: Its name in messages.
        encoding: A codec, or ``auto``.

    Raises:
        DataError: The file cannot be read, is not text, or is larger than a quarter of the machine's memory.
    """
    try:
        data = _bytes(path)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(path, error) from None
        problem = "the compressed file is damaged or cut off"
        raise DataError(problem, where=str(path), fix="download it again") from None
    refuse_other_formats(data[:512], path)
    return decode(data, name or path.name, encoding)


def stream_text(path: Path) -> tuple[str, Iterator[str]]:
    """Open a large UTF-8 file to read it line by line, decompressed if it is compressed.

    Bytes that are not UTF-8 are kept as lone surrogates, which the checks of values report for their row.

    Returns:
        The beginning as one text of complete lines, and all lines, with their ends as they are.

    Raises:
        DataError: The file cannot be read, or is not text.
        UnicodeDecodeError: Its beginning is not UTF-8.
    """
    packed = packing(head_of(path))
    with _open(path, packed) as file:
        data = file.read(_SAMPLE)
    refuse_other_formats(data[:512], path)
    sample = codecs.getincrementaldecoder("utf-8")().decode(data)
    end = sample.rfind("\n") + 1 or len(sample)
    return sample[:end], _lines(path, packed)


def _lines(path: Path, packed: str) -> Iterator[str]:
    file = _open(path, packed)
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        yield from lines


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the operating system cannot read."""
    reason = error.strerror or str(error)
    return DataError(f"cannot be read ({reason})", where=str(path), fix="check its permissions")


def memory_limit() -> int:
    """Return the largest size in bytes of a text that is read: texts need several times that in memory."""
    return (machine.memory_bytes() or _USUAL_MEMORY) // 4


def too_large(path: Path) -> DataError:
    """Return the error of a file that needs too much memory."""
    return DataError(
        f"more than {memory_limit() / 2**30:.1f} GiB of text, a quarter of this machine's memory",
        where=str(path),
        fix="split it into several files, or write it as Parquet, which is read in parts",
    )


def _bytes(path: Path) -> bytes:
    """Return the decompressed bytes of a file.

    Raises:
        DataError: The file is larger than a quarter of the memory.
    """
    most = memory_limit()
    size = path.stat().st_size
    if size > most:
        raise too_large(path)
    packed = packing(head_of(path))
    stated = next((ending for ending in _TOOLS if path.name.lower().endswith(ending)), "")
    if stated and not packed:
        tool = _TOOLS[stated]
        fix = f"download it again, or remove {stated} from its name if it is not compressed"
        raise DataError(f"the {tool} file is damaged: it has no {tool} header", where=str(path), fix=fix)
    limit = min(most, max(_SMALL, _DENSEST * size)) if packed else most
    with _open(path, packed) as file:
        data = _up_to(file, limit + 1)
    if len(data) <= limit:
        return data
    if limit == most:
        raise too_large(path)
    fix = "decompress it, and check its contents"
    raise DataError(f"unpacks to more than {_DENSEST} times its size", where=str(path), fix=fix)


def _up_to(file: IO[bytes], size: int) -> bytes:
    """Return at most ``size`` bytes, read in parts: ``read(size)`` would reserve all of them at once."""
    parts = list[bytes]()
    while size > 0 and (part := file.read(min(size, _PART))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _open(path: Path, packed: str) -> IO[bytes]:
    if packed == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if packed == ".xz":
        return lzma.open(path, "rb")
    return bz2.open(path, "rb") if packed == ".bz2" else path.open("rb")
