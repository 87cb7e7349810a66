"""Scores are streamed: a short vector is kept per row, never its prediction."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence

from fulltune.evaluation.evaluate import evaluate
from fulltune.metrics.likelihood import bits_per_byte, perplexity
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example

ROW_BYTES = 20_000


def _predict(examples: Sequence[Example]) -> Iterator[Prediction]:
    for number, example in enumerate(examples):
        text = f"{number}" * (ROW_BYTES // len(str(number)))
        values = {"nll": 1.0, "tokens": 2, "bytes": 3}
        yield Prediction(system="tuned", id=example.id, input=text, reference="", output="", values=values)


def _peak(rows: int) -> int:
    examples = [Example(f"r:{number}", "", "x") for number in range(rows)]
    tracemalloc.start()
    evaluation = evaluate(_predict, examples, (bits_per_byte, perplexity), system="tuned")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert evaluation.accumulator.n == rows
    return peak


def test_ten_times_the_rows_need_hardly_more_memory() -> None:
    few, many = _peak(300), _peak(3000)
    assert (many - few) / 2700 < ROW_BYTES / 50
