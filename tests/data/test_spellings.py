"""Labels spelled in several ways, missing values, joined labels: detected, counted, named, and never changed."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fulltune.config import Config
from fulltune.data.audit import Audit, audit
from fulltune.data.findings import Finding
from fulltune.data.load import Column, Row, Table, load_table
from fulltune.errors import DataError

Target = str | tuple[str, ...]


@dataclass(frozen=True)
class Example:
    id: str
    input: str
    target: Target


def distinct(number: int) -> str:
    return "".join(random.Random(number).choices("abcdefghijklmnop", k=40))


def split(name: str, targets: Sequence[Target], kind: str = "") -> tuple[Table, list[Example]]:
    start = {"train": 0, "eval": 10_000, "valid": 20_000}[name]
    examples = [Example(f"{name}:{n}", distinct(start + n), target) for n, target in enumerate(targets, start=1)]
    role = "labels" if targets and isinstance(targets[0], tuple) else "label"
    rows = [Row(example.id, example.id, {"text": example.input, role: example.target}) for example in examples]
    return Table(f"{name}.jsonl", tuple(rows), label_kind=kind), examples


def look(
    train: Sequence[Target],
    evaluation: Sequence[Target] = ("a", "b"),
    valid: Sequence[Target] = (),
    kinds: tuple[str, str] = ("", ""),
) -> Audit:
    (first, train_rows), (second, eval_rows) = split("train", train, kinds[0]), split("eval", evaluation, kinds[1])
    config = Config.model_validate({"model": "m", "task": "t", "data": {"train": "x"}})
    third = split("valid", valid)[0] if valid else None
    return audit(
        train=first, evaluation=second, valid=third, train_examples=train_rows, eval_examples=eval_rows, config=config
    )


def of_kind(result: Audit, kind: str) -> list[Finding]:
    return [finding for finding in result.findings if finding.kind == kind]


SIMILAR = [
    *(("yes", "Yes."), ("no", "no!"), ("a b", "A-B:")),
    *(("spam", "Spam"), ("spam", "spam "), ("spam", " spam"), ("spam", "spam\u200b"), ("spam", "sp\u00adam")),
    *(("not spam", "not\u00a0spam"), ("not spam", "not_spam"), ("not spam", "not-spam"), ("not spam", "not  spam")),
    *(("1", "1.0"), ("1", "01"), ("0", "-0"), ("2.5", "2.50"), ("True", "true"), ("TRUE", "true"), ("1", "1 ")),
    *(("caf\u00e9", "cafe\u0301"), ("spam", "sp\u0430m"), ("\uff53pam", "spam"), ("spam", '"spam"'), ("спам", "Спам")),
    *(("straße", "STRASSE"), ("ﬁne", "fine"), ("spam", "\ufeffspam"), ("\u03bfk", "ok")),
]


@pytest.mark.parametrize(("usual", "other"), SIMILAR, ids=ascii)
def test_two_spellings_of_one_label(usual: str, other: str) -> None:
    [finding] = of_kind(look([usual] * 60 + ["third"] * 20 + [other] * 3), "similar_labels")
    assert finding.level == "warning"
    assert (finding.count, finding.ids) == (3, ("train:81", "train:82", "train:83"))
    assert finding.details["spellings"] == [{usual: 60, other: 3}]
    assert "60 rows: train:1, train:2, train:3 …" in finding.message
    assert "3 rows: train:81, train:82, train:83)" in finding.message
    names = (ascii(usual), ascii(other)) if ascii(usual) in finding.message else (repr(usual), repr(other))
    assert f"write {names[0]} for {names[1]}" in finding.fix
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C", "C++"),
        ("C", "C#"),
        ("1", "10"),
        ("1.1", "1.10.0"),
        ("+", "-"),
        ("spam", "spams"),
        ("<", ">"),
        ("a/b", "ab"),
    ],
)
def test_labels_that_are_different(one: str, other: str) -> None:
    assert not of_kind(look([one] * 30 + [other] * 30), "similar_labels")


def test_spellings_are_found_over_all_splits() -> None:
    result = look(["spam", "ham"] * 30, ["Spam", "ham"] * 10, ["HAM", "spam"] * 5)
    [finding] = of_kind(result, "similar_labels")
    assert finding.details["spellings"] == [{"ham": 40, "HAM": 5}, {"spam": 35, "Spam": 10}]
    assert {name.split(":")[0] for name in finding.ids} == {"eval", "valid"}
    with pytest.raises(DataError, match=r"10 rows of eval have a label that train lacks.*Write 'spam', as in train"):
        result.raise_if_broken()


def test_several_labels_per_row_are_compared_too() -> None:
    [finding] = of_kind(look([("spam", "x"), ("Spam",), ()] * 20), "similar_labels")
    assert finding.count == 20


def test_more_than_five_groups_are_counted() -> None:
    train = [label for n in range(7) for label in (f"label{n}", f"Label{n}")] * 3
    assert "7 labels are spelled in several ways" in of_kind(look(train), "similar_labels")[0].message
    assert of_kind(look(train), "similar_labels")[0].message.endswith(" and 2 more")


@pytest.mark.parametrize(
    ("train", "message", "fix"),
    [
        (
            ["spam", "Spam "],
            "each a separate label (data.merge_labels: true merges them)",
            "set data.merge_labels: true",
        ),
        (["spam", "spa\u0430m", "sp\u0430m"], "each a separate label: ", "merge them in the data"),
        (["spam", "Spam", "eggs_1", "eggs 1"], "(data.merge_labels: true merges 1 of them)", "set data.merge_labels"),
    ],
)
def test_the_key_that_merges_spellings_is_the_fix(train: list[str], message: str, fix: str) -> None:
    [finding] = of_kind(look(train * 20), "similar_labels")
    assert message in finding.message
    assert finding.fix.startswith(fix)


def test_warnings_about_spellings_come_first() -> None:
    result = look(["spam", "ham", "Spam "] * 3 + ["eggs"], ["spam", "ham"])
    assert [line.split(" (")[0] for line in result.warnings()[:2]] == [
        "1 label is spelled in several ways, each a separate label",
        "1 label has whitespace or invisible characters at an end",
    ]
    assert len(result.warnings()) > 2
    assert result.summary().findings[: len(result.warnings())] == result.warnings()


def test_labels_that_differ_in_white_space_only() -> None:
    [finding] = of_kind(look([" spam", "ham\u200b", "❤️", "بی‌طرف"] * 20), "padded_labels")
    assert finding.message.startswith(
        "2 labels have whitespace or invisible characters at an end (data.merge_labels: true removes them): "
        "'ham\\u200b', ' spam'"
    )
    assert finding.count == 40


@pytest.mark.parametrize(
    ("label", "level"), [("nan", "warning"), ("NULL", "warning"), ("<NA>", "warning"), ("None", "info")]
)
def test_labels_that_stand_for_missing_values(label: str, level: str) -> None:
    [finding] = of_kind(look(["spam", "ham"] * 30 + [label] * 2), "missing_labels")
    assert finding.level == level
    assert finding.message == f"2 rows have the label {label!r}, which often stands for a missing value"
    assert finding.ids == ("train:61", "train:62")


def test_numbers_and_text_among_labels() -> None:
    [finding] = of_kind(look(["0", "1"] * 30 + ["spam"], ["0"]), "mixed_labels")
    assert finding.message == "2 labels are numbers ('0', '1'), and 1 label is text ('spam')"
    assert finding.ids == ("train:61",)
    assert not of_kind(look(["0", "1"] * 30, ["0", "1"]), "mixed_labels")


@pytest.mark.parametrize("joint", ["|", ";", ",", ", ", "/", " + "])
def test_joined_labels(joint: str) -> None:
    [finding] = of_kind(look(["a", "b", f"a{joint}b"] * 20), "joined_labels")
    assert f"1 label looks like several joined by {joint.strip()!r}" in finding.message
    assert f"data.label_separator: {joint.strip()!r}" in finding.fix
    assert finding.count == 20


def test_joined_labels_that_never_occur_alone() -> None:
    [finding] = of_kind(look(["a|b", "b|c", "c|a"] * 20), "joined_labels")
    assert "3 labels look like several joined by '|'" in finding.message
    assert not of_kind(look(["Paris, France", "Lyon, France", "a"] * 20), "joined_labels")
    assert not of_kind(look([("a",), ("b",), ("a|b",)] * 20), "joined_labels")


@pytest.mark.parametrize(
    "labels", [("0 1", "1 0"), ("010", "110"), ("0,1,1", "1,0,0"), ("(0, 1)", "(1, 1)"), ("0. 1.", "1. 1.")]
)
def test_vectors_written_as_one_label(labels: tuple[str, ...]) -> None:
    [finding] = of_kind(look(list(labels) * 20, labels), "vector_labels")
    assert finding.message.startswith("all labels look like 0/1 vectors")
    assert "data.label_names" in finding.fix


@pytest.mark.parametrize("labels", [("0", "1"), ("10", "11"), ("01", "spam"), ("0", "1", "10")])
def test_numbers_are_not_vectors(labels: tuple[str, ...]) -> None:
    assert not of_kind(look(list(labels) * 20, labels), "vector_labels")


def test_long_labels_are_cut_in_messages() -> None:
    result = look(["x" * 5000, "y"] * 30 + ["X" * 5000], ["y", "z" * 5000])
    assert max(len(finding.message) for finding in result.findings) < 400


def test_no_label_at_all() -> None:
    with pytest.raises(DataError, match="none of 20 rows of train has a label: nothing to learn"):
        look([()] * 20, [()]).raise_if_broken()


# Labels that train lacks


def test_labels_that_only_valid_has() -> None:
    result = look(["a", "b"] * 30, ["a", "b"], ["a", "b", "maybe"])
    [finding] = of_kind(result, "labels_only_in_valid")
    assert (finding.level, finding.ids) == ("warning", ("valid:3",))
    assert finding.message == "1 row of valid has a label that train lacks (33%), which counts as wrong: 'maybe'"
    several = look([("a",), ("b",)] * 30, [("a",)], [("a", "maybe")])
    assert of_kind(several, "labels_only_in_valid")[0].ids == ("valid:1",)


def test_numbers_in_one_split_and_names_in_the_other() -> None:
    result = look(["0", "1"] * 30, ["no", "yes"])
    assert (
        "labels of train are numbers, these are text: name the classes in data.label_names"
        in of_kind(result, "labels_only_in_eval")[0].fix
    )
    result = look(["no", "yes"] * 30, ["no"], ["1"])
    assert "labels of train are text, these are numbers" in of_kind(result, "labels_only_in_valid")[0].fix


def test_numbers_that_stand_for_an_unknown_label() -> None:
    [finding] = of_kind(look(["0", "1"] * 30, ["-1"] * 5), "labels_only_in_eval")
    assert finding.fix.startswith("remove these rows if a negative number means an unknown label")


def test_splits_that_write_their_labels_as_numbers_and_as_text() -> None:
    [finding] = of_kind(look(["0", "1"] * 30, ["0", "1"], kinds=("a number", "text")), "label_kinds")
    assert finding.message == "labels are written train as a number, eval as text: 1 and '1' are read as one label"
    assert not of_kind(look(["0", "1"] * 30, ["0", "1"], kinds=("a number", "")), "label_kinds")


def test_a_file_with_two_spellings_keeps_both(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], ["x", "spam"], ["y", "spam "], ["z", "1"], ["w", "1.0"]])
    columns = (Column("text", str), Column("label", str))
    config = Config.model_validate({"model": "m", "task": "t", "data": {"train": str(path)}})
    table = load_table(str(path), columns, config.data)
    examples = [Example(row.id, row.fields["text"], row.fields["label"]) for row in table]
    result = audit(train=table, evaluation=table, train_examples=examples, eval_examples=examples, config=config)
    [finding] = of_kind(result, "similar_labels")
    assert finding.details["spellings"] == [{"1": 2, "1.0": 2}, {"spam": 2, "spam ": 2}]
    assert "'spam ' (2 rows: rows.csv:3, rows.csv:3)" in finding.message
