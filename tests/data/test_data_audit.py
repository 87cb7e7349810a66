"""Each problem is detected, counted and named; correct data is left alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fulltune.config import Config
from fulltune.data.audit import Audit, Finding, audit, token_findings
from fulltune.data.load import Column, Row, Table, load_table
from fulltune.errors import DataError, Problem

CONTRACTS = Path(__file__).parents[3] / "shared" / "data" / "contracts"


@dataclass(frozen=True)
class Example:
    id: str
    input: str
    target: str | tuple[str, ...]


@dataclass(frozen=True)
class Features:
    input_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    labels: Any = 0
    removed: dict[str, int] = field(default_factory=dict)


def distinct(number: int) -> str:
    draw = random.Random(number)
    return " ".join("".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(6))


def config(**changes: Any) -> Config:
    data = {"train": "x", **changes.pop("data", {})}
    return Config.model_validate({"model": "m", "task": "t", "data": data, **changes})


Pairs = Sequence[tuple[str, str | tuple[str, ...]]]


def table(name: str, rows: Pairs, role: str, problems: Sequence[Problem] = ()) -> Table:
    """Return a table; ``role`` is the role of the target, and the input is then ``text`` (or absent)."""
    made = []
    for number, (text, target) in enumerate(rows, start=1):
        values = {"text": text, role: target} if role else {"text": target}
        made.append(Row(f"{name}:{number}", f"{name}:{number}", values))
    return Table(f"{name}.jsonl", tuple(made), tuple(problems))


def look(train: Pairs, evaluation: Pairs, role: str = "label", valid: Pairs = (), **options: Any) -> Audit:
    def examples(name: str, rows: Pairs) -> list[Example]:
        return [Example(f"{name}:{n}", text, target) for n, (text, target) in enumerate(rows, start=1)]

    problems, settings = options.pop("problems", ()), options.pop("config", config())
    own_split = options.pop("own_split", False)
    splits = {"train": examples("train", train), "eval": examples("eval", evaluation)}
    report = audit(
        train=table("train", train, role, problems),
        evaluation=table("eval", evaluation, role),
        valid=table("valid", valid, role) if valid else None,
        train_examples=splits["train"],
        eval_examples=splits["eval"],
        config=settings,
        own_split=own_split,
    )
    if not options:
        return report
    encoded = {"encode": lambda example: [Features()], "tokenizer": tokenizer(), "positions": 512} | options
    return report.extended(token_findings(splits, settings.data, generated=role not in ("label", "labels"), **encoded))


def rows(start: int, count: int, labels: str = "ab") -> list[tuple[str, str]]:
    return [(distinct(number), labels[number % len(labels)]) for number in range(start, start + count)]


def found(result: Audit, kind: str) -> Finding:
    (finding,) = [finding for finding in result.findings if finding.kind == kind]
    return finding


def kinds(result: Audit) -> set[str]:
    return {finding.kind for finding in result.findings}


TRAIN, EVAL = rows(0, 100), rows(1000, 60)
SENTENCE = "the quick brown fox jumps over the lazy dog and runs into the deep dark forest until it is tired"


def test_good_data_gives_no_error_and_no_warning() -> None:
    result = look(TRAIN, EVAL, encode=lambda example: [Features()], tokenizer=tokenizer())
    assert kinds(result) == {"class_balance", "lengths"}
    assert {finding.level for finding in result.findings} == {"info"}
    result.raise_if_broken()
    assert (result.summary().errors, result.summary().warnings, result.summary().leaked_rows) == (0, 0, 0)


# Duplicates, leaks, conflicts


def test_the_three_kinds_of_duplicates_within_train() -> None:
    copies = [(SENTENCE, "a"), (SENTENCE, "a"), (SENTENCE.upper() + "!", "a"), (SENTENCE + " now", "a")]
    result = look([*TRAIN, *copies], EVAL)
    for kind, place in (("exact", 102), ("normalized", 103), ("near", 104)):
        finding = found(result, f"{kind}_duplicates")
        assert (finding.count, finding.ids) == (1, (f"train:{place}",))
        assert finding.details["pairs"][0][:3] == [f"train:{place}", "train:101", kind]
        assert finding.message.startswith("1 row of train is ")
    assert found(result, "near_duplicates").details["pairs"][0][3] > 0.85


def test_nearly_equal_questions_are_wanted_and_nearly_equal_texts_are_not() -> None:
    rows = [*TRAIN, (SENTENCE, "a"), (SENTENCE + " again", "b")]
    assert found(look(rows, EVAL), "near_duplicates").fix.startswith("remove the duplicates")
    assert found(look(rows, EVAL, role="sql"), "near_duplicates").fix.startswith("keep them: other wordings")
    assert found(look([*rows, rows[0]], EVAL, role="sql"), "exact_duplicates").fix.startswith("remove")


def test_the_same_input_with_another_target_is_a_conflict_and_no_duplicate() -> None:
    others = [(SENTENCE, "a"), (SENTENCE, "b"), (SENTENCE.upper(), "c")]
    result = look([*TRAIN, *others], EVAL, role="sql")
    assert found(result, "conflicting_targets").count == 1
    assert kinds(result).isdisjoint({"exact_duplicates", "normalized_duplicates"})
    assert found(look([*TRAIN, *others, others[1]], EVAL, role="sql"), "exact_duplicates").ids == ("train:104",)


def test_many_exact_duplicates_are_a_warning() -> None:
    assert found(look(TRAIN + TRAIN[:1], EVAL), "exact_duplicates").level == "info"
    repeated = found(look(TRAIN + TRAIN[:5], EVAL), "exact_duplicates")
    assert repeated.level == "warning"
    read = Finding(kind="assumed_format", level="warning", message="a.txt: read as cp1251")
    assert Audit(findings=(read, repeated)).warnings() == (repeated.message, read.message)


def test_a_leak_is_the_same_input_with_the_same_target() -> None:
    train = [*TRAIN, (SENTENCE, "a"), (SENTENCE + " again", "b")]
    evaluation = [
        *EVAL,
        (TRAIN[0][0], TRAIN[0][1]),
        (TRAIN[1][0].title() + ".", TRAIN[1][1].upper()),
        ("so " + SENTENCE, "b"),
        (TRAIN[2][0], "b"),
        (SENTENCE + " and again", "c"),
    ]
    result = look(train, evaluation)
    leaks = found(result, "leaks")
    assert result.leaked_ids == leaks.ids == ("eval:61", "eval:62", "eval:63")
    assert leaks.details["kinds"] == {"exact": 1, "normalized": 1, "near": 1}
    assert leaks.details["pairs"][2][:3] == ["eval:63", "train:102", "near"]
    assert (leaks.level, result.summary().leaked_rows) == ("warning", 3)
    conflict = found(result, "eval_conflicts")
    assert (conflict.level, conflict.ids) == ("warning", ("eval:64",))
    assert conflict.message.endswith(
        f"{TRAIN[2][0][:59] + '…' if len(TRAIN[2][0]) > 60 else TRAIN[2][0]!r} is 'a' (train:3), 'b' (eval:64)"
    )
    assert found(result, "near_inputs").ids == ("eval:65",)


def test_leaks_in_disguise() -> None:
    """Look-alike letters, invisible characters, and one long word in twenty-one."""
    words = SENTENCE.split()
    disguised = [
        (SENTENCE.replace("o", "\u043e").replace("e", "\u0435"), "normalized"),
        (SENTENCE.replace("th", "t\u200bh") + "\ufeff", "normalized"),
        (SENTENCE.upper().replace("T", "\u0422"), "normalized"),
        (" ".join([*words[:5], "circumnavigates", *words[6:]]), "near"),
    ]
    result = look([*TRAIN, (SENTENCE, "a")], [*EVAL, *((text, "a") for text, _ in disguised)])
    pairs = found(result, "leaks").details["pairs"]
    assert [pair[:3] for pair in pairs] == [
        [f"eval:{n}", "train:101", kind] for n, (_, kind) in enumerate(disguised, 61)
    ]
    message = found(result, "leaks").message
    assert "4 of 64 rows of eval also occur in train with the same target" in message
    assert "(3 normalized, 1 near)" in message


def test_rows_that_differ_in_numbers_only_are_a_warning() -> None:
    """Records of one form: only the numbers differ."""
    form = (
        "The patient was seen in the clinic today for a routine visit. The blood pressure was {} over 94 and the pulse "
        "was {}. The temperature was 38.1 degrees. No other complaints were reported and the patient was sent home."
    )
    other_word = look([*TRAIN, (form.format(173, "high"), "a")], [*EVAL, (form.format(173, "low"), "a")])
    assert "leaks" in kinds(other_word)
    result = look([*TRAIN, (form.format(173, 115), "a")], [*EVAL, (form.format(142, 96.5), "a")])
    assert "leaks" not in kinds(result)
    assert result.leaked_ids == ()
    variants = found(result, "number_variants")
    assert (variants.level, variants.ids) == ("warning", ("eval:61",))
    assert "differ in numbers only, and have the same target" in variants.message
    result.raise_if_broken()


@pytest.mark.parametrize(("leaked", "level"), [(1, "warning"), (3, "warning"), (4, "error")])
def test_leaks_up_to_a_twentieth_of_the_rows_are_left_out(leaked: int, level: str) -> None:
    result = look(TRAIN, [*EVAL[: 60 - leaked], *TRAIN[:leaked]])
    leaks = found(result, "leaks")
    assert (leaks.level, leaks.count, len(result.leaked_ids)) == (level, leaked, leaked)
    if level == "warning":
        assert leaks.message.endswith("they are left out of the deciding scores")
        result.raise_if_broken()


def test_more_leaks_stop_the_run_unless_they_are_allowed() -> None:
    result = look(TRAIN, [*EVAL, *TRAIN[:4]])
    with pytest.raises(DataError) as caught:
        result.raise_if_broken(where="runs/one/audit.json")
    message = str(caught.value)
    assert "4 of 64 rows of eval also occur in train with the same target (4 exact)" in message
    assert "(eval:61, eval:62, eval:63 …)" in message
    assert "data.allow_leaks: true" in message
    assert "runs/one/audit.json" in message
    allowed = look(TRAIN, [*EVAL, *TRAIN[:4]], config=config(data={"allow_leaks": True}))
    allowed.raise_if_broken()
    assert found(allowed, "leaks").level == "warning"
    assert found(allowed, "leaks").message.endswith(
        "they count in the deciding scores, because data.allow_leaks is true"
    )
    assert len(allowed.leaked_ids) == 4


def test_leaks_of_a_split_that_is_made_here_never_stop_the_run() -> None:
    result = look(TRAIN, [*EVAL, *TRAIN[:40]], own_split=True)
    result.raise_if_broken()
    assert found(result, "leaks").level == "warning"
    assert found(result, "leaks").message.endswith("they are left out of the deciding scores, for which 60 remain")
    assert len(result.leaked_ids) == 40
    with pytest.raises(DataError, match="also occur in train"):  # no row is left to decide
        look(TRAIN, TRAIN[:40], own_split=True).raise_if_broken()


def test_all_leaked_ids_are_kept_although_the_finding_lists_twenty() -> None:
    result = look(TRAIN, TRAIN[:50])
    assert len(result.leaked_ids) == found(result, "leaks").count == 50
    assert len(found(result, "leaks").ids) == len(found(result, "leaks").details["pairs"]) == 20


def test_plain_text_leaks_by_the_text_itself() -> None:
    train, evaluation = ([("", text) for text, _ in part] for part in (TRAIN, [*EVAL, TRAIN[3]]))
    result = look(train, evaluation, role="")
    assert result.leaked_ids == ("eval:61",)
    assert "eval_conflicts" not in kinds(result)


def test_several_labels_are_the_same_target_in_any_order() -> None:
    train = [*[(text, (label, "z")) for text, label in TRAIN], (SENTENCE, ("a", "b"))]
    evaluation = [*[(text, (label,)) for text, label in EVAL], (SENTENCE, ("b", "a")), (SENTENCE, ("a",))]
    result = look(train, evaluation, role="labels")
    assert result.leaked_ids == ("eval:61",)
    assert found(result, "eval_conflicts").ids == ("eval:62",)


@pytest.mark.parametrize(("role", "level"), [("label", "warning"), ("sql", "warning"), ("target", "info")])
def test_one_input_with_several_targets(role: str, level: str) -> None:
    result = look([*TRAIN, (SENTENCE, "a"), (SENTENCE + ".", "b"), (SENTENCE, "a")], EVAL, role=role)
    conflict = found(result, "conflicting_targets")
    assert (conflict.level, conflict.count, conflict.ids) == (level, 1, ("train:101", "train:102"))
    assert conflict.details["inputs"] == [[["train:101", "a"], ["train:102", "b"]]]
    assert conflict.message.endswith(f": {SENTENCE[:59] + '…'!r} is 'a' (train:101), 'b' (train:102)")


def test_targets_that_contradict_each_other_are_shown_where_they_differ() -> None:
    query = "SELECT name, city FROM customers WHERE turnover > 1000 AND country = "
    pairs = [("who is big?", f"{query}'{name}'") for name in ("Peru", "Chile", "Cuba", "Fiji")]
    pairs += [(text, target) for text in ("one", "two", "six") for target in ("x", "y")]
    message = found(look([*TRAIN, *pairs], EVAL, role="sql"), "conflicting_targets").message
    assert "4 inputs of train have more than one target: 'who is big?' is " in message
    assert "country = 'Peru'\" (train:101)" in message
    assert "country = 'Chile'\" (train:102)" in message
    assert ", 1 more; 'one' is 'x' (train:105), 'y' (train:106); and 2 more" in message


def test_overlaps_with_the_curve_are_only_reported() -> None:
    valid = [*rows(2000, 20), TRAIN[0], EVAL[0], EVAL[1]]
    result = look(TRAIN, EVAL, valid=valid)
    assert found(result, "valid_train_overlap").ids == ("valid:21",)
    assert found(result, "eval_valid_overlap").ids == ("eval:1", "eval:2")
    result.raise_if_broken()


# Labels


def test_class_balance_counts_each_split() -> None:
    balance = found(look([*TRAIN, (SENTENCE, "c")], EVAL), "class_balance")
    assert balance.details["counts"] == {"train": {"a": 50, "b": 50, "c": 1}, "eval": {"a": 30, "b": 30}, "valid": {}}
    assert balance.message == "3 labels in train: from 50 ('a') down to 1 row ('c')"


def test_labels_that_only_eval_has() -> None:
    broken = look(TRAIN, [*EVAL, (SENTENCE, "new")])
    finding = found(broken, "labels_only_in_eval")
    assert (finding.level, finding.ids) == ("error", ("eval:61",))
    assert "can never be predicted: 'new'" in finding.message
    with pytest.raises(DataError, match="1 row of eval has a label that train lacks"):
        broken.raise_if_broken()
    few = look(TRAIN, [*rows(1000, 150), (SENTENCE, "new")])
    assert found(few, "labels_only_in_eval").level == "warning"
    few.raise_if_broken()


def test_rare_and_unscored_labels() -> None:
    result = look([*TRAIN, (SENTENCE, "once")], EVAL)
    assert found(result, "rare_labels").details["labels"] == ["once"]
    assert found(result, "rare_labels").level == "warning"
    assert found(result, "unscored_labels").message == "1 label of train never occurs in eval: 'once'"


def test_a_single_label_is_an_error() -> None:
    result = look([(text, "a") for text, _ in TRAIN], [(text, "a") for text, _ in EVAL])
    with pytest.raises(DataError, match="all 100 rows of train have the label 'a'"):
        result.raise_if_broken()


# Sizes and bad rows


def test_few_rows() -> None:
    result = look(rows(0, 6), rows(1000, 6), config=config(train={"batch_size": 8}))
    assert found(result, "less_than_a_batch").level == "warning"
    assert "6 rows in train, fewer than one batch of 8" in found(result, "less_than_a_batch").message
    assert {"few_train_rows", "few_eval_rows"} <= kinds(result)
    assert "less_than_a_batch" not in kinds(look(rows(0, 8), EVAL))


@pytest.mark.parametrize("bad", [10, 110])
def test_a_label_that_only_bad_rows_have_is_no_second_problem(bad: int) -> None:
    problems = [Problem("a number (2)", "a label", where=f"train:{number}", field="label") for number in range(bad)]
    result = look(rows(0, 100, "a"), rows(1000, 60, "a"), problems=problems)
    assert "one_label" not in kinds(result)
    assert ("data.bad_rows: skip" in found(result, "bad_rows").fix) == (bad == 10)
    skipping = look(rows(0, 100, "a"), rows(1000, 60, "a"), problems=problems[:10], config=SKIPPING)
    assert {"bad_rows", "one_label"} <= kinds(skipping)


SKIPPING = config(data={"bad_rows": "skip"})


@pytest.mark.parametrize(
    ("bad", "words"), [(1, "1 row of train cannot be used and is"), (2, "2 rows of train cannot be used and are")]
)
def test_one_bad_row_is_singular(bad: int, words: str) -> None:
    problems = [Problem("empty text", "text", "fill it in", f"train.jsonl:{n}", "text") for n in range(1, bad + 1)]
    assert found(look(TRAIN, EVAL, problems=problems, config=SKIPPING), "bad_rows").message == f"{words} skipped"


def test_bad_rows_and_other_errors_are_raised_together() -> None:
    problems = [Problem("empty text", "text", "fill it in", f"train.jsonl:{n}", "text") for n in range(1, 31)]
    result = look(TRAIN, [*EVAL, *TRAIN[:9]], problems=problems)
    assert len(result.bad_rows) == 30
    with pytest.raises(DataError) as caught:
        result.raise_if_broken(where="runs/one/audit.json")
    assert len(caught.value.problems) == 2 + 30
    message = str(caught.value)
    assert "30 rows of train cannot be used" in message
    assert "of eval also occur in train" in message
    assert "train.jsonl:1, train.jsonl:2, train.jsonl:3 and 27 more, field 'text': empty text; expected text" in message
    assert "the complete list is in runs/one/audit.json" in message


def test_the_audit_is_written_and_read_back() -> None:
    result = look(TRAIN, [*EVAL, *TRAIN[:2]], problems=[Problem("broken", where="train.jsonl:5")])
    again = Audit.model_validate_json(result.to_json())
    assert again == result
    first = json.loads(result.to_json())["findings"][0]
    assert {"kind", "level", "message", "fix", "ids", "count"} <= first.keys()
    summary = result.summary()
    assert (summary.errors, summary.warnings, summary.leaked_rows) == (1, 1, 2)
    assert len(summary.findings) == len(result.findings)
    assert "cannot be used" in summary.findings[0]


# Tokens


@cache
def tokenizer(alphabet: str = "abcdefghijklmnopqrstuvwxyz .", **special: str) -> Any:
    """Return a tokenizer with one token per character; characters outside the alphabet are unknown."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    vocabulary = {token: number for number, token in enumerate([*dict.fromkeys(names.values()), *alphabet])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=16, **names)


def test_lengths_count_what_was_cut() -> None:
    sizes = iter([*range(1, 101), *[5] * 60])

    def encode(example: Example) -> list[Features]:
        size = next(sizes)
        return [Features(input_ids=[1] * min(size, 50), removed={"input": size - 50} if size > 50 else {})]

    result = look(TRAIN, EVAL, encode=encode)
    train = next(finding for finding in result.findings if finding.kind == "lengths")
    assert (train.details["min"], train.details["max"], train.details["tokens"]) == (1, 100, 5050)
    assert train.message == "train: 1 to 100 tokens per row, median 50, 95% at most 95"
    cut = found(result, "truncated")
    assert (cut.level, cut.count, cut.ids[0]) == ("warning", 50, "train:51")


@pytest.mark.parametrize(
    ("asked", "positions", "message", "fix"),
    [
        (50, 512, "(50%, data.max_length: 50)", "raise data.max_length (or data.max_target_length) (the model has 512"),
        (512, 50, "(50%, the model's limit: 50 tokens, less than data.max_length: 512)", "shorten the rows, or"),
        (50, 50, "(50%, the model's limit: 50 tokens)", "shorten the rows, or choose a model with more than 50"),
        (None, 50, "(50%, the model's limit: 50 tokens)", "shorten the rows, or choose a model with more than 50"),
        (None, 512, "(50%) by", "raise data.max_length"),
    ],
)
def test_truncation_names_what_limits_the_rows(asked: int | None, positions: int, message: str, fix: str) -> None:
    sizes = iter([*range(1, 101), *[5] * 60])

    def encode(example: Example) -> list[Features]:
        size = next(sizes)
        return [Features(input_ids=[1] * min(size, 50), removed={"input": size - 50} if size > 50 else {})]

    settings = config(data={"max_length": asked})
    cut = found(look(TRAIN, EVAL, encode=encode, positions=positions, config=settings), "truncated")
    assert message in cut.message
    assert cut.fix.startswith(fix)


@pytest.mark.parametrize(
    ("labels", "lost"), [([-100, -100], True), ([-100, 5], False), ([0.0, 0.0], False), (0, False)]
)
def test_labels_left_after_truncation(labels: Any, lost: bool) -> None:
    result = look(TRAIN, EVAL, encode=lambda example: [Features(labels=labels)])
    assert ("nothing_to_learn" in kinds(result)) is lost


@pytest.mark.parametrize(("count", "level"), [(5, "warning"), (6, "error")])
def test_too_many_rows_without_a_label_stop_the_run(count: int, level: str) -> None:
    numbers = iter(range(1000))

    def encode(example: Example) -> list[Features]:
        return [Features(labels=[-100] if next(numbers) < count else [7], removed={"input": 1})]

    result = look(TRAIN, EVAL, encode=encode, config=config(data={"max_truncated": 0.05}))
    finding = found(result, "nothing_to_learn")
    assert (finding.level, finding.count) == (level, count)
    if level == "error":
        with pytest.raises(
            DataError, match=r"6 rows of train have no label left.*allows 5%.*[Rr]aise data\.max_length"
        ):
            result.raise_if_broken()
    else:
        result.raise_if_broken()


def test_a_row_without_sequences_has_nothing_to_learn() -> None:
    assert found(
        look(TRAIN, EVAL, encode=lambda e: [] if e.id == "train:3" else [Features()]), "nothing_to_learn"
    ).ids == ("train:3",)


def test_unknown_tokens_are_counted_and_their_characters_named() -> None:
    train = [*TRAIN[:-1], ("ab{c}", "a")]
    finding = found(look(train, EVAL, tokenizer=tokenizer()), "unknown_input_tokens")
    total = sum(len(text) for text, _ in train)
    assert finding.details == {"unknown": 2, "tokens": total, "characters": ["{", "}"]}
    assert (finding.level, finding.ids) == ("info", ("train:100",))
    assert "(among their characters: { })" in finding.message


def test_an_unknown_token_that_is_the_end_of_text_cannot_be_detected() -> None:
    same = tokenizer(unk_token="</s>")
    assert "unknown_input_tokens" not in kinds(look([*TRAIN, ("{}", "a")], EVAL, tokenizer=same))


@pytest.mark.parametrize(("broken", "level"), [(1, "warning"), (50, "warning"), (51, "error")])
def test_targets_that_do_not_survive(broken: int, level: str) -> None:
    train = [(text, "select a{" if n < broken else "select  b") for n, (text, _) in enumerate(TRAIN)]
    result = look(train, EVAL, role="target", tokenizer=tokenizer())
    finding = found(result, "targets_not_recoverable")
    assert (finding.level, finding.count, finding.details["characters"]) == (level, broken, ["{"])
    assert "lost: {" in finding.message
    assert found(result, "unknown_target_tokens").count == broken


def test_names_of_classes_need_not_be_tokenizable() -> None:
    train = [(text, {"a": "{A}", "b": "</s>"}[label]) for text, label in TRAIN]
    assert kinds(look(train, [(text, "{A}") for text, _ in EVAL], tokenizer=tokenizer())) == {
        "class_balance",
        "lengths",
        "unscored_labels",
    }


def test_targets_with_the_end_of_text_string() -> None:
    train = [(text, "stop </s> here" if n in (4, 7) else "fine") for n, (text, _) in enumerate(TRAIN)]
    result = look(train, EVAL, role="target", tokenizer=tokenizer())
    finding = found(result, "end_of_text_in_target")
    assert (finding.level, finding.ids) == ("error", ("train:5", "train:8"))
    with pytest.raises(DataError, match=r"'</s>' inside the target.*Remove it from the targets"):
        result.raise_if_broken()


@pytest.mark.parametrize("target", ["<pad>", "</s>", "<unk>", "<pad><pad> </s>", " <pad>\u200b"])
def test_targets_of_special_tokens_only(target: str) -> None:
    train = [(text, target if n in (4, 7) else "fine") for n, (text, _) in enumerate(TRAIN)]
    result = look(train, EVAL, role="target", tokenizer=tokenizer())
    finding = found(result, "target_of_special_tokens")
    assert (finding.level, finding.ids) == ("error", ("train:5", "train:8"))
    assert "targets_not_recoverable" not in kinds(result)
    assert "end_of_text_in_target" not in kinds(result)
    name = next(name for name in ("</s>", "<pad>", "<unk>") if name in target)
    expected = f"2 rows of train have a target of only special tokens \\(.*'{name}'.*\\), which decoding drops"
    with pytest.raises(DataError, match=expected):
        result.raise_if_broken()


@pytest.mark.parametrize(("count", "level"), [(2, "warning"), (51, "error")])
def test_special_tokens_inside_targets(count: int, level: str) -> None:
    train = [(text, "wait <pad> here" if n < count else "fine") for n, (text, _) in enumerate(TRAIN)]
    result = look(train, EVAL, role="target", tokenizer=tokenizer())
    finding = found(result, "special_tokens_in_target")
    assert (finding.level, finding.count, finding.ids[:2]) == (level, count, ("train:1", "train:2"))
    assert "special tokens of the tokenizer inside the target ('<pad>'), which decoding drops" in finding.message
    assert "targets_not_recoverable" not in kinds(result)


def test_targets_without_any_token() -> None:
    from tokenizers import normalizers

    cleaning = deepcopy(tokenizer())
    cleaning.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    train = [(text, "\x01\x02" if n in (4, 7) else "fine") for n, (text, _) in enumerate(TRAIN)]
    result = look(train, EVAL, role="target", tokenizer=cleaning)
    finding = found(result, "unread_targets")
    assert (finding.level, finding.ids) == ("error", ("train:5", "train:8"))
    with pytest.raises(DataError, match="2 rows of train have a target that the tokenizer turns into no token"):
        result.raise_if_broken()


def test_texts_longer_than_the_window_are_tokenized_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    look([*TRAIN, ("abc " * 500, "a")], EVAL, tokenizer=tokenizer())
    assert "longer than the specified maximum" not in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(not CONTRACTS.is_dir(), reason="needs the contracts data set in ../shared")
def test_real_contracts() -> None:
    columns = (Column("text", str), Column("label", str))
    settings = config()
    train, evaluation = (
        load_table(str(CONTRACTS / f"single.{name}.jsonl"), columns, settings.data) for name in ("train", "test")
    )
    examples = [
        [Example(row.id, row.fields["text"], row.fields["label"]) for row in part] for part in (train, evaluation)
    ]
    result = audit(
        train=train, evaluation=evaluation, train_examples=examples[0], eval_examples=examples[1], config=settings
    )
    assert (len(train), len(evaluation), result.bad_rows) == (4145, 828, ())
    assert found(result, "class_balance").count == 19
    assert "exact_duplicates" not in kinds(result)
    assert found(result, "near_duplicates").count == 97
    assert len(result.leaked_ids) == 14
    assert {pair[2] for pair in found(result, "leaks").details["pairs"]} == {"near"}


def test_line_ends_that_were_replaced_are_noted_once(tmp_path: Path) -> None:
    tables = []
    for name, ending in (("train", "\r\n"), ("eval", "\n")):
        for number in range(3):
            file = tmp_path / name / f"{number}.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(f"{distinct(number)}{ending}{name}{ending}".encode())
        tables.append(load_table(str(tmp_path / name), [Column("text", str)], config().data))
    train, evaluation = tables
    examples = [[Example(row.id, "", row.fields["text"]) for row in one] for one in tables]
    found = audit(
        train=train, evaluation=evaluation, train_examples=examples[0], eval_examples=examples[1], config=config()
    )
    [noted] = [one for one in found.findings if one.kind == "line_ends"]
    assert (noted.level, noted.message) == ("info", "3 rows have Windows line ends (CR LF), which are read as LF")


WHERE = "SELECT city FROM place WHERE state = 'ohio'"


@pytest.mark.parametrize(
    ("question", "query", "is_leak"),
    [
        ("Please tell me which cities are in ohio", WHERE, True),
        ("Which cities are in Ohio, if you know?", WHERE, True),
        ("which cities are in ohio and not in texas", f"{WHERE} AND NOT state = 'texas'", False),
        ("which cities are in iowa", WHERE.replace("ohio", "iowa"), False),
        ("ohio", WHERE, False),
    ],
)
def test_a_question_with_other_words_around_it_is_a_leak_if_its_query_is_the_same(
    question: str, query: str, is_leak: bool
) -> None:
    train = [("which cities are in ohio", WHERE), *rows(0, 6)]
    found = look(train, [(question, query), *rows(10, 60)], role="sql")
    assert found.leaked_ids == (("eval:1",) if is_leak else ())
    assert look(train, [(question, "a"), *rows(10, 60)], role="label").leaked_ids == ()


def test_texts_of_one_class_that_contain_each_other_are_no_leak() -> None:
    train = [("the food was very good", "very good indeed"), *rows(0, 6)]
    found = look(train, [("the food was very good and cheap", "very good indeed"), *rows(10, 60)], role="label")
    assert found.leaked_ids == ()
