"""Bytes to text, or a clear refusal."""

from __future__ import annotations

import codecs

from fulltune.errors import DataError

#: UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(data: bytes, where: str) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 with a byte-order mark.

    Anything else is refused, not guessed: every byte is a letter in Latin-1 and nearly every one in Windows-1251, so a
    wrong guess raises no error, and the model learns garbled text without a word.

    Raises:
        DataError: Not decodable; names the byte, the line, the likely encoding, and the command that converts the file.
    """
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
    found = f"byte 0x{data[offset]:02X} at offset {offset} is not {error.encoding.upper()}"
    if error.encoding.startswith("utf-8") and not _is_damaged_utf8(data):
        name = _guess(data)
        found += f"; the file looks like {name}"
        fix = _convert(name, where)
    else:
        fix = "the rest of the file is well formed: mend or remove that line"
    return DataError(found, expected="UTF-8", where=f"{where}:{line}", fix=fix)


def _convert(encoding: str, where: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 {where} > utf8-{where}"


def _is_damaged_utf8(data: bytes) -> bool:
    """Whether most of what is not ASCII decodes: then a few bytes are broken, and the encoding is not another."""
    text = data.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    return sum(not character.isascii() for character in text) - broken > 3 * broken


def _guess(data: bytes) -> str:
    """Cyrillic is mostly high bytes, Western text is not; its small letters are E0-FF in CP1251, C0-DF in KOI8-R."""
    high = [byte for byte in data if byte >= 0x80]
    letters = sum(chr(byte).isalpha() for byte in data if byte < 0x80) + len(high)
    if len(high) < 0.35 * letters:
        return "WINDOWS-1252"
    upper_half = sum(byte >= 0xE0 for byte in high)
    return "WINDOWS-1251" if 2 * upper_half >= len(high) else "KOI8-R"
