"""Decode the bytes of a file, or raise a clear error."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, replace
from typing import Any

from fulltune.data.encoding_guess import guess_encoding
from fulltune.errors import DataError, Problem, shortened

#: UTF-32 first: its little-endian byte-order mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: Fraction of the lines with non-ASCII bytes that are valid UTF-8, from which the others are damaged lines, and not in
#: another encoding: lines in other encodings are hardly ever valid UTF-8.
_MOSTLY_UTF8 = 0.2


@dataclass(frozen=True)
class Decoded:
    """The text of a file.

    Attributes:
        text: The text. A byte of a UTF-8 file that cannot be decoded is replaced by a surrogate (PEP 383), so that
            only its row is bad.
        codec: The encoding.
        assumed: The inference, as a sentence; "" if the encoding is certain.
        evidence: The end of this sentence, which differs between files in one encoding: language and samples.
        is_doubtful: Another encoding fits almost as well.
    """

    text: str
    codec: str
    assumed: str = ""
    evidence: str = ""
    is_doubtful: bool = False

    def as_read(self) -> dict[str, Any]:
        """Return the fields of a :class:`~fulltune.records.run.FileFormat` that the encoding decides."""
        return {"encoding": self.codec, "evidence": self.evidence, "is_doubtful": self.is_doubtful}


def decode(data: bytes, where: str, encoding: str = "auto") -> Decoded:
    """Return the text of a file.

    A byte-order mark decides. With ``auto``, text that is not UTF-8 is read in the encoding whose letters fit best.

    Args:
        data: The bytes of the file.
        where: Name of the file, for messages.
        encoding: A codec, or ``auto``.

    Raises:
        DataError: The bytes cannot be decoded, or no encoding is plausible.
    """
    if data and not data.strip(b"\0"):
        raise DataError("only NUL bytes", expected="text", where=where, fix="download or write it again")
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if marked is not None:
        return _strictly(data, marked, where)
    if encoding != "auto":
        return _strictly(data, encoding, where)
    if (codec := _unmarked_utf16(data)) is not None:
        assumed = "it has NUL bytes as UTF-16 has, but no byte-order mark: read as UTF-16"
        return replace(_strictly(data, codec, where), assumed=assumed)
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        return _inferred(data, where)


def _strictly(data: bytes, codec: str, where: str) -> Decoded:
    try:
        return Decoded(data.decode(codec), codec.removesuffix("-sig"))
    except UnicodeDecodeError as error:
        if codec == "utf-8-sig":
            return Decoded(data.decode(codec, errors="surrogateescape"), "utf-8")
        raise _refusal(data, error, where) from None


def _unmarked_utf16(data: bytes) -> str | None:
    """Return the codec of UTF-16 without a byte-order mark: ASCII characters have a NUL byte, always on one side."""
    head = data[:20_000]
    first, second = head[::2].count(0), head[1::2].count(0)
    if len(head) < 4 or max(first, second) < 0.1 * len(head) / 2 or min(first, second) > 0.05 * max(first, second):
        return None
    return "utf-16-le" if second > first else "utf-16-be"


def _inferred(data: bytes, where: str) -> Decoded:
    """Return the text of bytes that are not UTF-8.

    Raises:
        DataError: No encoding is plausible.
    """
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    if sum(map(_is_utf8, lines)) >= max(1, _MOSTLY_UTF8 * len(lines)):
        return Decoded(data.decode("utf-8", errors="surrogateescape"), "utf-8")
    guess = guess_encoding(data)
    if guess is None:
        raise DataError(
            _not_utf8(data),
            expected="text in a known encoding",
            where=f"{where}:{_line_number(data, _first_invalid(data))}",
            fix="set data.encoding to its encoding, or write it as UTF-8",
        )
    text = data.decode(guess.codec, errors="surrogateescape")
    language = f", by the letters of {guess.language}" if guess.language else ""
    evidence = f"{language} ({_sample(data, guess.codec)})"
    if guess.rival:
        evidence += f"; {guess.rival} fits almost as well ({_sample(data, guess.rival)}): set data.encoding"
    assumed = f"it is not UTF-8: read as {guess.codec}{evidence}"
    return Decoded(text, guess.codec, assumed, evidence, is_doubtful=bool(guess.rival))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _first_invalid(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _line_number(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _not_utf8(data: bytes) -> str:
    offset = _first_invalid(data)
    return f"byte 0x{data[offset]:02X} at offset {offset} is not UTF-8"


#: Longest sample of a text in a message, in characters.
_SAMPLE = 40


def _sample(data: bytes, codec: str) -> str:
    """Return the line number and a few words around the first byte that is not UTF-8, as the codec decodes them."""
    offset = _first_invalid(data)
    start = data.rfind(b"\n", 0, offset) + 1
    line = data[start : start + 4 * _SAMPLE + offset - start].partition(b"\n")[0]
    text = line.decode(codec, errors="replace")
    at = len(line[: offset - start].decode(codec, errors="replace"))
    begin = text.find(" ", at - _SAMPLE // 2, at) + 1 if at > _SAMPLE // 2 else 0
    words = re.sub(r"\s+", " ", text[begin : begin + _SAMPLE]).rpartition(" ")
    return f"line {_line_number(data, offset)}: {shortened((words[0] or words[2]).strip())}"


def _refusal(data: bytes, error: UnicodeDecodeError, where: str) -> DataError:
    offset = error.start
    place = f"{where}:{_line_number(data, offset)}"
    problem = f"byte 0x{data[offset]:02X} at offset {offset} is not {error.encoding.upper()}"
    fix = "set data.encoding to the file's encoding, or to auto; if that is right, correct the line"
    return DataError(Problem(problem, f"text in {error.encoding}", fix, place))
