"""Decode bytes to text, or raise a clear error."""

from __future__ import annotations

import codecs
import re

import charset_normalizer

from fulltune.errors import DataError, shortened

#: UTF-32 first: its little-endian byte-order mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(data: bytes, where: str) -> str:
    """Return the text of a file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Other encodings are rejected instead of guessed. Every byte is a letter in Latin-1, and almost every byte in
    Windows-1251: a wrong guess would raise no error, and the model would learn garbled text.

    Raises:
        DataError: The bytes cannot be decoded; names the byte, the line, the likely encoding, and a command that
            converts the file.
    """
    if data and not data.strip(b"\0"):
        raise DataError("only NUL bytes", expected="text", where=where, fix="download or write it again")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and _looks_like_utf16(data):
        raise DataError(
            "every other byte is NUL: this looks like UTF-16 without a byte-order mark",
            expected="UTF-8",
            where=where,
            fix=_convert("UTF-16LE" if data[1] == 0 else "UTF-16BE", where),
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _refusal(data, error, where) from None


def _looks_like_utf16(data: bytes) -> bool:
    head = data[:2000]
    return len(head) >= 4 and max(head[::2].count(0), head[1::2].count(0)) > len(head) * 0.4


def _refusal(data: bytes, error: UnicodeDecodeError, where: str) -> DataError:
    offset = error.start
    line = data.count(b"\n", 0, offset) + 1
    problem = f"byte 0x{data[offset]:02X} at offset {offset} is not {error.encoding.upper()}"
    if error.encoding.startswith("utf-8") and not _is_damaged_utf8(data):
        name = _guess(data)
        sample = _line_around(data, offset).decode(name, errors="replace").strip()
        problem += f"; the file looks like {name} (that line would read {shortened(sample)})"
        fix = _convert(name, where)
    else:
        fix = "the rest of the file is well formed: correct or remove that line"
    return DataError(problem, expected="UTF-8", where=f"{where}:{line}", fix=fix)


def _convert(encoding: str, where: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 {where} > utf8-{where}"


def _is_damaged_utf8(data: bytes) -> bool:
    """Return True if most non-ASCII bytes decode: then a few bytes are damaged and the encoding is UTF-8."""
    text = data.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    return sum(not character.isascii() for character in text) - broken > 3 * broken


def _line_around(data: bytes, offset: int) -> bytes:
    start = data.rfind(b"\n", 0, offset) + 1
    end = data.find(b"\n", offset)
    return data[start : end if end >= 0 else len(data)]


def _guess(data: bytes) -> str:
    """Return the likely encoding.

    In Latin scripts, non-ASCII letters are isolated between ASCII letters. Other scripts have whole words of them,
    whose letter frequencies identify the encoding.
    """
    head = data[:_LOOKED_AT]
    runs = re.findall(rb"[\x80-\xff]+", head)
    if sum(map(len, runs)) < 2 * len(runs):
        return "WINDOWS-1250" if _SIGNS_IN_WORDS.search(head) else "WINDOWS-1252"
    fraction, cyrillic = max((_common_letters(head, name), name) for name in _CYRILLIC)
    if fraction > _RUSSIAN:
        return cyrillic
    match = charset_normalizer.from_bytes(head, cp_isolation=list(_OTHER_SCRIPTS)).best()
    return cyrillic if match is None else _OTHER_SCRIPTS[match.encoding]


def _common_letters(data: bytes, encoding: str) -> float:
    """Return the fraction of the non-ASCII letters that are among the most frequent ones of Russian."""
    letters = [sign for sign in data.decode(encoding, errors="replace") if not sign.isascii() and not sign.isspace()]
    return sum(sign in "оеаинтсрвл" for sign in letters) / max(1, len(letters))


_CYRILLIC = ("WINDOWS-1251", "KOI8-R", "CP866", "ISO-8859-5")

#: Those ten letters are 65% of Russian prose; in a wrong encoding at most 40% of the letters look like them.
_RUSSIAN = 0.5

#: Number of bytes from which the encoding is guessed.
_LOOKED_AT = 1 << 20

#: Symbols of Windows-1252 such as ¹ ³ ¿ next to a letter are letters of Windows-1250.
_SIGNS_IN_WORDS = re.compile(rb"[A-Za-z][\xa5\xaa\xaf\xb3\xb9\xba\xbe\xbf][a-z]")

#: Names of encodings in Python and in iconv.
_OTHER_SCRIPTS = {
    "cp1251": "WINDOWS-1251",
    "koi8_r": "KOI8-R",
    "cp866": "CP866",
    "iso8859_5": "ISO-8859-5",
    "cp1253": "WINDOWS-1253",
    "cp1255": "WINDOWS-1255",
    "cp1256": "WINDOWS-1256",
    "shift_jis": "SHIFT_JIS",
    "euc_jp": "EUC-JP",
    "gb18030": "GB18030",
    "big5": "BIG5",
    "euc_kr": "EUC-KR",
}
