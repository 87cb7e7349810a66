"""Define the task ``translation``: text to text, decided by chrF, with a metric and a column of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fulltune.data.load import Row
from fulltune.metrics import text
from fulltune.metrics.base import Array, Metric
from fulltune.records.run import Prediction
from fulltune.tasks.base import Column, Example
from fulltune.tasks.seq2seq import Seq2Seq


def _is_untranslated(prediction: Prediction) -> Array:
    return np.array([prediction.output == prediction.input, 1.0])


untranslated = Metric(
    name="untranslated",
    direction="lower",
    version=1,
    source="the output equals the input, character by character",
    statistics=_is_untranslated,
    value=lambda sums: sums[..., 0] / sums[..., 1],
    label="fraction left untranslated",
)


class Translation(Seq2Seq):
    """Translate the column ``source``; the reference is the column ``target``.

    The column ``domain`` is optional and precedes the text. A config names it if it has another name in the data:
    ``data: {columns: {domain: field}}``.
    """

    name = "translation"
    version = 1
    question = "Text"
    answer = "Translation"
    inputs = ("source", "domain")

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        return (*super().columns(available), Column("domain", str, required=False))

    def example(self, row: Row) -> Example:
        example = super().example(row)
        domain = row.fields.get("domain")
        return replace(example, input=f"[{domain}] {example.input}") if domain else example

    def request(self, row: Mapping[str, str], place: str = "") -> Example:
        return self.example(Row("asked", "", {**row, "target": ""}))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return text.chrf, text.bleu, untranslated, text.capped
