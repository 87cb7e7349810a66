"""Scores are streamed: a short vector is kept per row, never its prediction."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

from fulltune.config import load_config
from fulltune.evaluation.evaluate import evaluate
from fulltune.metrics.likelihood import bits_per_byte, perplexity
from fulltune.records.run import Prediction
from fulltune.runtime import plugins
from fulltune.tasks import dataset
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


def test_the_group_column_reaches_scores_and_predictions(tmp_path: Path) -> None:
    rows = [{"text": f"text {row}", "label": "ab"[row % 2], "company": f"c{row // 10}"} for row in range(60)]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")}
    config = load_config({"model": "m", "task": "classification", "data": sources | {"group": "company"}})
    task, data = dataset.prepare(config, plugins.load("task", "classification")(config))
    written: list[Prediction] = []

    def right(examples: Sequence[Example]) -> Iterator[Prediction]:
        return (Prediction(system="s", id=e.id, input="", reference=e.target, output=e.target) for e in examples)

    evaluation = evaluate(right, data.eval.examples, task.metrics, system="s", sink=written.append)
    assert [line.group for line in written] == [row["company"] for row in rows]
    assert (evaluation.accumulator.rows("accuracy").size, evaluation.accumulator.rows("accuracy").n) == (6, 60)
    without = evaluation.without({line.id for line in written[:10]})
    assert without.accumulator.rows("accuracy").size == 5
