"""Bits per byte and perplexity against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.likelihood import bits_per_byte, perplexity
from fulltune.records.run import Prediction

ROWS = st.lists(
    st.tuples(st.floats(0, 1e4), st.integers(1, 2000), st.integers(1, 9000)),
    min_size=1,
    max_size=20,
)


def row(index: int, nll: object, tokens: int, size: int) -> Prediction:
    values = {"nll": nll, "tokens": tokens, "bytes": size}
    return Prediction(system="tuned", id=str(index), input="", reference="", output="", values=values)


def score(*rows: Prediction) -> dict[str, float]:
    accumulator = Accumulator([bits_per_byte, perplexity])
    for prediction in rows:
        accumulator.add(prediction)
    return {name: found.value for name, found in accumulator.scores(resamples=100).items()}


@given(ROWS)
def test_both_are_ratios_of_sums(rows: list[tuple[float, int, int]]) -> None:
    found = score(*(row(index, *values) for index, values in enumerate(rows)))
    nats = tokens = size = 0.0
    for nll, some_tokens, some_bytes in rows:
        nats += nll
        tokens += some_tokens
        size += some_bytes
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    expected = math.inf if nats / tokens > 709.78 else math.exp(nats / tokens)
    assert found["perplexity"] == pytest.approx(expected)


def test_a_uniform_guess_over_256_bytes_costs_8_bits() -> None:
    assert score(row(0, 10 * math.log(256), 5, 10))["bits_per_byte"] == pytest.approx(8)


def test_a_longer_document_counts_more() -> None:
    found = score(row(0, 10.0, 10, 10), row(1, 900.0, 300, 300))
    assert found["perplexity"] == pytest.approx(math.exp(910 / 310))


def test_a_row_without_likelihood_does_not_count() -> None:
    accumulator = Accumulator([bits_per_byte])
    accumulator.add(Prediction(system="tuned", id="a", input="", reference="", output=""))
    accumulator.add(row(1, 1.0, 1, 1))
    assert accumulator.scores()["bits_per_byte"].n == 1


def test_nan_from_a_file_stays_nan() -> None:
    again = Prediction.model_validate_json(row(0, float("nan"), 3, 3).model_dump_json())
    assert all(math.isnan(value) for value in score(again, row(1, 1.0, 1, 1)).values())


def test_no_bytes_is_undefined_and_overflow_is_infinite() -> None:
    assert np.isnan(score(row(0, 1.0, 1, 0))["bits_per_byte"])
    assert score(row(0, 1e6, 1, 1))["perplexity"] == math.inf


def test_directions() -> None:
    assert {bits_per_byte.direction, perplexity.direction} == {"lower"}
    assert not bits_per_byte.percent
    assert not perplexity.percent


def test_a_perplexity_close_to_the_largest_number_has_an_interval() -> None:
    found = score(*(row(index, 700.0 + index, 1, 1) for index in range(8)))
    assert found["perplexity"] == pytest.approx(math.exp(703.5))
