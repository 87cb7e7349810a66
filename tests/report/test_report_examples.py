from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st
from page_reader import PageReader

from fulltune.records.run import Prediction
from fulltune.report import render
from fulltune.report.examples import choose, gallery, text, token_f1

words = st.text(alphabet="ab c", max_size=20)


def rows(system: str, outputs: list[str], references: list[str]) -> list[Prediction]:
    return [
        Prediction(system=system, id=f"r{i}", input=f"input {i}", reference=right, output=output)
        for i, (output, right) in enumerate(zip(outputs, references, strict=True))
    ]


def counts(task: str, predictions: list[Prediction]) -> dict[str, int]:
    found = gallery(task, predictions, 24).examples
    assert found is not None
    return {group.name: group.count for group in found.groups}


def test_labels_are_sorted_into_fixed_broken_and_unchanged() -> None:
    references = ["a", "b", "c", "d", "e"]
    predictions = rows("zero_shot", ["x", "b", "x", "d", "x"], references)
    predictions += rows("tuned", ["a", "x", "c", "d", "y"], references)
    found = gallery("classification", predictions, 24).examples

    assert counts("classification", predictions) == {"fixed": 2, "broken": 1, "unchanged": 2}
    assert found is not None
    assert found.kept_right == 1
    assert [case.id for case in found.groups[0].cases] == ["r0", "r2"]


def test_several_labels_are_right_as_a_set() -> None:
    fields = {"id": "r", "input": "i", "reference": ("a", "b")}
    predictions = [
        Prediction(system="zero_shot", output=("a",), **fields),
        Prediction(system="tuned", output=("b", "a"), **fields),
    ]

    assert counts("classification", predictions)["fixed"] == 1


def test_queries_are_judged_by_their_result_when_it_is_known() -> None:
    fields = {"id": "r", "input": "q", "reference": "SELECT 1"}
    predictions = [
        Prediction(system="zero_shot", output="SELECT 1", values={"match": False, "exact": True}, **fields),
        Prediction(system="tuned", output="select  1", values={"match": True, "exact": False}, **fields),
    ]

    assert counts("text2sql", predictions)["fixed"] == 1


def test_texts_are_judged_by_the_words_they_share() -> None:
    references = ["the cat sat down"] * 3
    predictions = rows("zero_shot", ["a dog", "the cat sat down", "the cat"], references)
    predictions += rows("tuned", ["the cat sat", "a dog", "cat the"], references)

    assert counts("seq2seq", predictions) == {"fixed": 1, "broken": 1, "unchanged": 1}


def test_likelihoods_are_judged_in_bits_per_byte_lower_is_better() -> None:
    def row(system: str, row_id: str, bits: object) -> Prediction:
        nll = bits * 100 * math.log(2) if isinstance(bits, float) else bits
        values = {"nll": nll, "bytes": 100}
        return Prediction(system=system, id=row_id, input="", reference="", output="", values=values)

    predictions = [row("zero_shot", "a", 1.5), row("zero_shot", "b", 1.5), row("zero_shot", "c", 1.5)]
    predictions += [row("tuned", "a", 1.2), row("tuned", "b", 1.51), row("tuned", "c", "NaN")]
    found = gallery("causal-lm", predictions, 24).examples

    assert counts("causal-lm", predictions) == {"fixed": 1, "broken": 0, "unchanged": 1}
    assert found is not None
    assert found.numbers
    assert [answer.text.body for answer in found.groups[0].cases[0].answers] == ["1.500", "1.200"]


def test_before_is_the_first_available_baseline() -> None:
    predictions = rows("few_shot", ["x"], ["a"]) + rows("majority", ["a"], ["a"]) + rows("tuned", ["a"], ["a"])
    found = gallery("classification", predictions, 24).examples

    best = gallery("classification", predictions, 24, "majority").examples
    assert best is not None
    assert best.before == "Majority class, the best baseline"
    assert [answer.label for answer in best.groups[2].cases[0].answers] == ["Majority class", "Tuned"]
    assert found is not None
    assert found.before == "Few-shot"
    assert [answer.label for answer in found.groups[0].cases[0].answers] == ["Few-shot", "Tuned"]


@pytest.mark.parametrize("systems", [[], ["tuned"], ["zero_shot"]])
def test_there_are_no_examples_without_both_sides(systems: list[str]) -> None:
    predictions = [row for name in systems for row in rows(name, ["a"], ["a"])]

    assert gallery("classification", predictions, 24).examples is None


def test_predictions_are_streamed_and_never_held() -> None:
    class Counting:
        passes = 0

        def __iter__(self) -> Iterator[Prediction]:
            self.passes += 1
            yield from samples.classification().predictions

    source = Counting()
    listed = samples.classification().predictions
    record = samples.record()

    assert (
        render(record, [], source, None) == render(record, [], listed, None) == render(record, [], iter(listed), None)
    )
    assert source.passes == 2


@pytest.mark.parametrize(("total", "shown"), [(24, 24), (5, 5), (0, 0), (10_000, 400)])
def test_the_requested_number_of_examples_is_shown_and_all_are_counted(total: int, shown: int) -> None:
    sample = samples.classification()
    found = PageReader(render(sample.record, [], sample.predictions, None, examples=total))

    assert found.of_class("case") == shown
    assert "180 fixed 16 broken 204 unchanged (192 correct, 12 incorrect)" in found.text


def test_long_texts_are_folded_and_very_long_ones_cut() -> None:
    short = text("word " * 10)
    long = text("word " * 100)
    huge = text("word " * 1000)

    assert not short.head
    assert long.head
    assert long.body == "word " * 100
    assert huge.hidden == 5000 - 1500
    predictions = rows("zero_shot", ["x"], ["word " * 1000]) + rows("tuned", ["word " * 1000], ["word " * 1000])
    found = PageReader(render(samples.record(task="seq2seq"), [], predictions, None))
    assert sum(name == "details" for name, _ in found.elements) == 3  # answer, reference and the shots
    assert "… and 3,500 more characters" in found.text


@pytest.mark.parametrize(("output", "shown"), [("", "(empty)"), (" \n", "(white space)")])
def test_an_empty_answer_is_shown_as_empty(output: str, shown: str) -> None:
    predictions = rows("zero_shot", [output], ["a"]) + rows("tuned", ["a"], ["a"])

    assert shown in PageReader(render(samples.record(), [], predictions, None)).text


@given(words, words)
def test_token_f1_is_symmetric_and_bounded(a: str, b: str) -> None:
    assert 0 <= token_f1(a, b) == token_f1(b, a) <= 1
    assert token_f1(a, a) == 1


def test_token_f1_by_hand() -> None:
    assert token_f1("The cat, the", "the cat sat") == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert token_f1("天下", "天上") == 0.5
    assert token_f1("", "a") == 0


@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), st.integers(0, 60))
def test_sampling_takes_all_available_rows_and_none_twice(sizes: list[int], total: int) -> None:
    ids = {str(i): [f"{i}-{n}" for n in range(size)] for i, size in enumerate(sizes)}
    chosen = choose(ids, total)
    flat = [row for picked in chosen.values() for row in picked]

    assert len(flat) == len(set(flat)) == min(total, sum(sizes))
    assert all(set(chosen[name]) <= set(ids[name]) for name in ids)
