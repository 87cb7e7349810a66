"""Files that fulltune and general libraries decode wrongly, by the encoding of the text.

    pip install chardet
    python benchmarks/encodings.py

Texts are those of ``tests/data/test_encoding.py``, each as a whole and in parts of twelve words, in each encoding that
it is written in. A file is wrong if one character of its text differs; the library's name of the encoding does not
matter. Libraries that are not installed are left out.
"""

from __future__ import annotations

import importlib.util
import runpy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import charset_normalizer
from tools import processes

from fulltune.data.encoding import decode
from fulltune.errors import DataError

TESTS = Path(__file__).parents[1] / "tests" / "data" / "test_encoding.py"
WORDS, STEP = 12, 3

Decoder = Callable[[bytes], str]


def main() -> None:
    texts: dict[str, tuple[tuple[str, ...], str]] = runpy.run_path(str(TESTS))["TEXTS"]
    groups = defaultdict[str, list[tuple[str, str]]](list)
    for codecs, text in texts.values():
        for codec in codecs:
            groups["whole texts"].append((text, codec))
            groups[codec] += ((part, codec) for part in parts(text))
    known = decoders()
    rows = []
    for name, cases in groups.items():
        wrong = [str(sum(decoder(text.encode(codec)) != text for text, codec in cases)) for decoder in known.values()]
        rows.append((name, str(len(cases)), *wrong))
    rows.append(("milliseconds of one core per part", "", *map(milliseconds, known.values(), [groups["cp1250"]] * 9)))
    processes.table("wrongly decoded", ("encoding", "files", *known), rows)


def parts(text: str) -> Iterator[str]:
    """Yield runs of twelve words that are not ASCII."""
    words = text.split()
    for start in range(0, max(1, len(words) - WORDS + 1), STEP):
        part = " ".join(words[start : start + WORDS])
        if not part.isascii():
            yield part


def milliseconds(decoder: Decoder, cases: list[tuple[str, str]]) -> str:
    start = time.process_time()
    for text, codec in cases:
        decoder(text.encode(codec))
    return f"{1000 * (time.process_time() - start) / len(cases):.1f}"


def decoders() -> dict[str, Decoder]:
    known: dict[str, Decoder] = {"fulltune": ours, "charset-normalizer": normalizer}
    if importlib.util.find_spec("chardet"):
        known["chardet"] = detector
    return known


def ours(data: bytes) -> str:
    try:
        return decode(data, "file").text
    except DataError:
        return ""


def normalizer(data: bytes) -> str:
    return str(charset_normalizer.from_bytes(data).best() or "")


def detector(data: bytes) -> str:
    import chardet

    return data.decode(chardet.detect(data)["encoding"] or "ascii", errors="replace")


if __name__ == "__main__":
    main()
