"""Folk tales: repeatable, varied, of the right length; generated ones agree with the gender of the hero."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from demo import make
from demo.grammar import Grammar
from demo.tales import CASES, CAST, PLOTS, Language, make_tales, written_tales
from fulltune.data.demo.__main__ import main

LANGUAGES: tuple[Language, ...] = ("ru", "en")
TALES = {language: make_tales(200, language=language) for language in LANGUAGES}
GENERATED = {language: [tale for tale in tales if tale["plot"] != "written"] for language, tales in TALES.items()}
LEXICON = (*CAST.values(), "sought m", "sought f")


@pytest.mark.parametrize("language", LANGUAGES)
def test_tales_are_of_the_right_length_and_all_different(language: Language) -> None:
    tales = TALES[language]
    assert len(tales) == len({tale["text"] for tale in tales}) == len({tale["id"] for tale in tales}) == 200
    assert {tale["plot"] for tale in tales} == {*PLOTS, "written"}
    assert len({tale["title"] for tale in tales}) > 60
    for tale in tales:
        assert 150 <= len(tale["text"].split()) <= 500


@pytest.mark.parametrize("language", LANGUAGES)
def test_written_tales_are_complete_and_unlike_each_other(language: Language) -> None:
    tales = written_tales(language)
    assert len(tales) == len({tale["title"] for tale in tales}) == len({tale["id"] for tale in tales}) >= 18
    runs: Counter[tuple[str, ...]] = Counter()
    for tale in tales:
        assert tale.keys() == TALES[language][0].keys()
        assert (tale["plot"], tale["language"]) == ("written", language)
        assert 150 <= len(tale["text"].split()) <= 260, tale["title"]
        assert tale["text"].count("\n\n") >= 3
        assert tale["text"].endswith((".", "?", "!", '"'))
        words = re.findall(r"\w+", tale["text"].lower())
        runs.update({tuple(words[start : start + 12]) for start in range(len(words) - 11)})
    assert len(runs) > 2000
    assert [run for run, count in runs.items() if count > 1] == []


def test_written_russian_tales_are_in_cyrillic() -> None:
    for tale in written_tales("ru"):
        letters = [character for character in tale["title"] + tale["text"] if character.isalpha()]
        assert sum("а" <= letter.lower() <= "я" or letter in "ёЁ" for letter in letters) == len(letters), tale["title"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("n", [0, 1, 7, 30, 60])
def test_all_written_tales_are_included_but_never_the_majority(language: Language, n: int) -> None:
    tales, written = make_tales(n, language=language), written_tales(language)
    assert len(tales) == len({tale["id"] for tale in tales}) == len({tale["text"] for tale in tales}) == n
    among = [tale for tale in tales if tale["plot"] == "written"]
    assert len(among) == min(n // 2, len(written))
    assert all(tale in written for tale in among)


@pytest.mark.parametrize("language", LANGUAGES)
def test_written_tales_occur_in_both_splits(language: Language) -> None:
    plots = [tale["plot"] for tale in TALES[language]]
    assert "written" in plots[:160]
    assert "written" in plots[160:]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_texts_are_clean(language: Language) -> None:
    letters = "[а-яёА-ЯЁ]" if language == "ru" else "[a-zA-Z]"
    others = "[a-zA-Z]" if language == "ru" else "[а-яёА-ЯЁ]"
    for tale in TALES[language]:
        text = tale["title"] + "\n" + tale["text"]
        assert not re.search(r"[{}\[\]|<>/_&@%=]|  | [,.;:!?»]|,[.,]|\.\.|[!?]»\.|[.] [a-zа-яё]", text), text
        assert re.search(letters, text)
        assert not re.search(others, text)
        assert text.count("«") == text.count("»")
        assert text.count('"') % 2 == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_seldom_shared_between_tales(language: Language) -> None:
    first, second = (set(re.split(r"(?<=[.!?]) ", GENERATED[language][index]["text"])) for index in (0, 1))
    assert len(first & second) < 0.5 * len(first)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_has_its_forms_and_every_reference_a_rule(language: Language) -> None:
    grammar = Grammar.load(f"tales_{language}")
    for rule in LEXICON:
        for line in grammar.rules[rule]:
            *forms, gender = line.split(", ")
            assert gender in "mfn", line
            assert language == "en" or len(forms) == len(CASES), line
    values = {f"{letter}{case}" for letter in (*CAST, "s") for case in CASES}
    references = {name for lines in grammar.rules.values() for line in lines for name in re.findall(r"\{(.*?)\}", line)}
    assert len(references) > 10
    assert references <= values | set(grammar.rules)
    functions = {name for paragraphs in PLOTS.values() for paragraph in paragraphs for name in paragraph}
    assert {name.format(sex=sex) for name in functions for sex in "mf"} <= set(grammar.rules)


def test_verbs_agree_with_the_gender_of_the_hero() -> None:
    """Check the finished text, for verbs that follow or precede a hero's name."""
    grammar = Grammar.load("tales_ru")
    sexes = {line.split(", ")[0]: line.rpartition(", ")[2] for line in grammar.rules["hero"]}
    pattern = re.compile(r"\b([А-ЯЁ][а-яё]+(?:лся|лась|л|ла)) (" + "|".join(sexes) + r")\b")
    pairs = [pair for tale in GENERATED["ru"] for pair in pattern.findall(tale["text"])]
    assert len(pairs) > 150
    for verb, name in pairs:
        assert verb.endswith(("ла", "лась")) == (sexes[name] == "f"), (verb, name)


def test_pronouns_agree_with_the_gender_of_the_hero() -> None:
    sexes = {line.split(", ")[0]: line.rpartition(", ")[2] for line in Grammar.load("tales_en").rules["hero"]}
    for tale in GENERATED["en"]:
        hero = next(name for name in sexes if re.search(rf"\b{name}\b", tale["text"]))
        he, his = ("she", "her") if sexes[hero] == "m" else ("he", "his")
        assert not re.search(rf"\b{he}\b|\b{his} (hands|back|heart|nose|grandmother|hand)\b", tale["text"]), tale[
            "text"
        ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_seed_gives_the_same_tales_in_every_process(language: Language) -> None:
    script = """
import json, sys
from demo.tales import make_tales
print(json.dumps(make_tales(20, language=sys.argv[1])))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, language]
    assert json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout) == make_tales(
        20, language=language
    )
    assert make_tales(5, seed=1, language=language) != make_tales(5, seed=2, language=language)


@pytest.mark.parametrize(("name", "language"), [("tales", "ru"), ("tales-en", "en")])
def test_the_command_writes_tales(tmp_path: Path, name: str, language: Language) -> None:
    main([name, str(tmp_path)])
    rows = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "eval")
    }
    assert (len(rows["train"]), len(rows["eval"])) == (160, 40)
    assert {row["language"] for row in rows["train"]} == {language}
    written = b"".join((tmp_path / f"{split}.jsonl").read_bytes() for split in ("train", "eval"))
    assert written == make.lines(TALES[language])
