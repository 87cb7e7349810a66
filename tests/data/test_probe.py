"""The built-in probe: enough text, evenly labeled, unlike the example data, always the same."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from demo.contracts import make_contracts
from demo.tales import make_tales
from fulltune.data.probe import LANGUAGES, TOPICS, Language, builtin_probe

PROBE = {language: builtin_probe(language) for language in LANGUAGES}
ALPHABETS = {"en": "[a-zA-Z]", "ru": "[а-яёА-ЯЁ]"}


def sequences(text: str, n: int) -> set[tuple[str, ...]]:
    """Return all runs of n words, ignoring case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}


def test_both_languages_come_english_first() -> None:
    assert LANGUAGES == ("en", "ru")
    assert builtin_probe() == PROBE["en"] + PROBE["ru"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_are_numbered_in_order(language: Language) -> None:
    rows = PROBE[language]
    assert [row["id"] for row in rows] == [f"{language}-{number:02}" for number in range(1, 41)]
    assert {row["language"] for row in rows} == {language}
    assert all(row.keys() == {"id", "text", "language", "topic"} for row in rows)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_topic_has_five_passages(language: Language) -> None:
    assert Counter(row["topic"] for row in PROBE[language]) == dict.fromkeys(TOPICS, 5)
    assert len(TOPICS) == 8


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_passage_is_one_paragraph_of_60_to_130_words(language: Language) -> None:
    texts = [row["text"] for row in PROBE[language]]
    assert len(texts) == 40
    for text in texts:
        assert 60 <= len(text.split()) <= 130, text
        assert not re.search(r"\n|  |^\s|\s$|^#|\s[,.;:!?»]", text), text
        assert text.count('"') % 2 == 0
        assert text.count("«") == text.count("»")


@pytest.mark.parametrize("language", LANGUAGES)
def test_letters_are_those_of_the_language(language: Language) -> None:
    for row in PROBE[language]:
        letters = [char for char in row["text"] if char.isalpha()]
        assert len(letters) > 200
        assert all(re.match(ALPHABETS[language], letter) for letter in letters), row["id"]


def test_no_two_passages_share_a_run_of_six_words() -> None:
    counts = Counter(run for row in builtin_probe() for run in sequences(row["text"], 6))
    assert len(counts) > 5000
    assert [run for run, count in counts.items() if count > 1] == []


def test_the_example_data_share_no_run_of_ten_words_with_the_probe() -> None:
    demo = [row["text"] for row in (*make_contracts(300), *itertools.chain(*make_tales().values()))]
    assert len(demo) > 400
    known = set().union(*(sequences(text, 10) for text in demo))
    assert len(known) > 10_000
    assert [row["id"] for row in builtin_probe() if sequences(row["text"], 10) & known] == []


def test_it_is_small_enough_to_score_in_seconds() -> None:
    characters = sum(len(row["text"]) for row in builtin_probe())
    assert 35_000 < characters < 50_000


def test_each_caller_gets_its_own_rows() -> None:
    rows = builtin_probe("en")
    rows[0]["text"] = "changed"
    assert builtin_probe("en") == PROBE["en"]


def test_every_process_reads_the_same_rows_whatever_its_locale() -> None:
    script = "import json; from fulltune.data.probe import builtin_probe; print(json.dumps(builtin_probe()))"
    changed = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": "7"}
    environment = os.environ | changed | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == builtin_probe()


def test_an_unknown_language_has_no_rows() -> None:
    with pytest.raises(FileNotFoundError, match=r"probe_fr\.txt"):
        builtin_probe("fr")  # type: ignore[arg-type]
