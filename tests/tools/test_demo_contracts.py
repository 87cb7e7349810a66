"""Generated clauses: repeatable, clean, and not to be solved by counting words or runs of characters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from demo import make
from demo.contracts import LABELS, make_contracts
from demo.grammar import Grammar, Writer, polish
from demo.make import CLAUSES
from fulltune.data.demo.__main__ import main
from fulltune.data.demo.files import write_contracts
from fulltune.data.overlap import Entry, overlap

ROWS = make_contracts(1500)


def test_the_same_seed_gives_the_same_rows_in_every_process() -> None:
    script = "import json; from demo.contracts import make_contracts; print(json.dumps(make_contracts(60)))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]) == make_contracts(60) == ROWS[:60]


def test_another_seed_gives_other_rows() -> None:
    assert not {row["text"] for row in make_contracts(200, seed=1)} & {
        row["text"] for row in make_contracts(200, seed=2)
    }


def test_no_clause_occurs_twice_and_every_type_is_there() -> None:
    counts = Counter(row["label"] for row in ROWS)
    assert len(ROWS) == len({row["text"] for row in ROWS}) == 1500
    assert sorted(counts) == sorted(LABELS)
    assert min(counts.values()) > 650
    assert len({row["contract"] for row in ROWS}) == 100


def test_the_texts_are_clean() -> None:
    for row in ROWS:
        text = row["text"]
        assert not re.search(r"[{}\[\]|_]|\(n\)|  | [,.;:]|,[.,;]|\.\.|\ba [aeio]\w", text), text
        assert text.endswith(".")
        assert text[0].isupper()
        assert 8 <= len(text.split()) <= 50
        assert {"author", "company"} & set(re.findall(r"\w+", text))


def test_label_noise_changes_labels_and_nothing_else() -> None:
    noisy = make_contracts(1500, label_noise=0.2)
    assert [row["text"] for row in noisy] == [row["text"] for row in ROWS]
    assert sum(a["label"] != b["label"] for a, b in zip(ROWS, noisy, strict=True)) == 300


def test_the_package_ships_the_generated_rows(tmp_path: Path) -> None:
    written = write_contracts(tmp_path, n=CLAUSES)
    assert sum(written.values()) == CLAUSES
    shipped = [line for path in written for line in path.read_bytes().splitlines(keepends=True)]
    assert set(make.lines(ROWS).splitlines(keepends=True)) <= set(shipped)
    write_contracts(tmp_path)
    train, evaluation = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("train", "eval"))
    in_training = {json.loads(line)["contract"] for line in train.splitlines()}
    assert train == make.lines(row for row in ROWS if row["contract"] in in_training)
    assert evaluation == make.lines(row for row in ROWS if row["contract"] not in in_training)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (
            "In May, the author, by day, must print the maps. On time, the company, at once, need not print the maps.",
            "author",
        ),
        (
            "Although, at home, the maps may be printed by the author at once, by day, the company, in turn, has to "
            "send all plans.",
            "company",
        ),
        (
            "By law, the company, in full, is required to check the drafts, and in May, the drafts need not be "
            "read by the author on time.",
            "company",
        ),
        (
            "While the company, in full, is not required to sign the plans, at last, the author, by post, "
            "shall sign all plans. The plans shall be sent by the bank.",
            "author",
        ),
        ("In May, no party save the author, by day, is required to sign the plans.", "author"),
        (
            "The bank may sign the plans. By law, all parties other than the author, by day, must sign the plans.",
            "company",
        ),
        (
            "In turn, of the company and the author, the former, by day, need not sign the plans, while the other "
            "must.",
            "author",
        ),
    ],
)
def test_the_rule_behind_the_labels(text: str, label: str) -> None:
    assert who_is_bound(text) == label


def test_every_label_follows_from_its_text() -> None:
    wrong = [row for row in ROWS if who_is_bound(row["text"]) != row["label"]]
    assert wrong == []


def test_the_parties_change_places_and_the_words_stay() -> None:
    """A label that depended on words alone would be the same after the parties have changed places."""
    names = {"author": "company", "company": "author"}
    for row in ROWS:
        swapped = re.sub("author|company", lambda match: names[match[0]], row["text"])
        assert who_is_bound(swapped) == names[row["label"]]


def who_is_bound(text: str) -> str:
    """Return the label of a clause by reading it statement by statement, without the generator."""
    if match := re.search(r"(all parties|no party) (?:save|except|other than) the (\w+), ", text):
        return match[2] if match[1] == "no party" else _other(match[2])
    if match := re.search(r", of the (\w+) and the (\w+), the (former|latter|first|second), [^,]*, (.*)", text):
        named = match[1] if match[3] in ("former", "first") else match[2]
        return _other(named) if re.match("need not|may", match[4]) else named
    (bound,) = {party for party in ("author", "company") if any(_binds(one, party) for one in _statements(text))}
    return bound


def _other(party: str) -> str:
    return "company" if party == "author" else "author"


def _statements(text: str) -> list[str]:
    """Return the statements of a clause, without what joins them and without asides."""
    plain = re.sub(r"(author|company), [^,;.]*?, (?=shall|must|has to|is |may|need not)", r"\1 ", text.lower())
    return re.split(r"(?:^|[,;.]) *(?:and |but |although |while |even if )?", plain)


def _binds(statement: str, party: str) -> bool:
    """Return whether a statement without asides binds a party."""
    active = rf"the {party} (shall|must|has to|is required to) "
    passive = rf".* (shall|must) be \w+ by the {party}\b"
    return bool(re.match(rf"{active}|{passive}", statement))


def test_no_party_is_known_by_its_place_alone() -> None:
    parties = [re.findall("author|company", row["text"]) for row in ROWS]
    for place in (0, -1):
        bound = sum(named[place] == row["label"] for named, row in zip(parties, ROWS, strict=True))
        assert 0.33 < bound / len(ROWS) < 0.67


@pytest.mark.slow  # the shipped rows change only with the generator
def test_words_and_runs_of_characters_do_not_solve_it(tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    main(["contracts", str(tmp_path)])
    train, evaluation = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "eval")
    )
    assert len(train) + len(evaluation) == 1500
    assert not {row["contract"] for row in train} & {row["contract"] for row in evaluation}
    words = TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    model = make_pipeline(make_union(words, characters), LinearSVC(C=1.0))
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    predicted = model.predict([row["text"] for row in evaluation])
    assert f1_score([row["label"] for row in evaluation], predicted, average="macro") < 0.65


@pytest.mark.slow  # the shipped rows change only with the generator
def test_the_audit_reports_nothing(tmp_path: Path) -> None:
    write_contracts(tmp_path, n=CLAUSES)
    train, evaluation = (
        [
            Entry(f"{name}:{index}", row["text"], row["label"])
            for index, row in enumerate(map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines()))
        ]
        for name in ("train", "eval")
    )
    compared = overlap(train, (), evaluation, allow_leaks=False, one_answer=True)
    assert [finding for finding in compared.findings if finding.level == "error"] == []
    assert len(compared.leaked) <= 5


def test_the_command_lists_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["contracts", str(tmp_path / "new")])
    assert re.fullmatch(r".*train\.jsonl: \d+ rows\n.*eval\.jsonl: \d+ rows\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["contracts"])
def test_every_reference_of_a_grammar_is_a_rule_or_a_value(name: str) -> None:
    values = {"P", "Q", "F", "L", "S", "T", "O", "do", "done", "things"}
    grammar = Grammar.load(name)
    text = "\n".join(line for alternatives in grammar.rules.values() for line in alternatives)
    assert set(re.findall(r"\{(.*?)\}", text)) <= set(grammar.rules) | values
    assert all(line.count("[") == line.count("]") and line.count("{") == line.count("}") for line in text.splitlines())


def test_a_grammar_expands_choices_references_and_values() -> None:
    grammar = Grammar.parse(
        "# a comment\n\nstart:\n  {who} saw [a(n) {thing}|a(n) {thing}]{end}\nthing: owl\nend:\n  _\n"
    )
    assert Writer(grammar, Random(1), {"who": "she"}).write("start") == "She saw an owl"


def test_each_writer_has_a_style() -> None:
    grammar = Grammar.parse("word:\n" + "".join(f"  w{index}\n" for index in range(20)))
    writer = Writer(grammar, Random(1), share=0.2)
    assert len({writer.expand("{word}") for _ in range(200)}) == 4
    assert len({Writer(grammar, Random(1)).expand("{word}{word}") for _ in range(3)}) == 1


@pytest.mark.parametrize("text", ["  outside", "a:\n  x\na:\n  y\n", "a:\n"])
def test_a_broken_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"outside|twice|without"):
        Grammar.parse(text)


@pytest.mark.parametrize(
    ("rough", "polished"),
    [
        ("a(n) hour , a(n) unit. the end", "An hour, a unit. The end"),
        ("4.2 the buyer pays", "4.2 The buyer pays"),
        ("with leave,, and more,.", "With leave, and more."),
        ("«нет!» — сказал он. «да»", "«Нет!» — сказал он. «Да»"),
    ],
)
def test_polish(rough: str, polished: str) -> None:
    assert polish(rough) == polished
