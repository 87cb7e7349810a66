"""Task ``seq2seq``: text to text (summaries, translations, rewriting), with an encoder-decoder or a decoder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fulltune.metrics import text
from fulltune.metrics.base import Metric
from fulltune.tasks.base import Column, Example, Facts
from fulltune.tasks.generation import TextToText

if TYPE_CHECKING:
    from fulltune.data.load import Row


class Seq2Seq(TextToText):
    """Text to text, from the columns ``source`` and ``target``."""

    name = "seq2seq"
    version = 1
    inputs = ("source",)
    baselines = ("copy", "lead", "nearest", "zero_shot", "few_shot")

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        return Column("source", str), Column("target", str)

    def example(self, row: Row) -> Example:
        return Example(row.id, row.fields["source"], row.fields["target"])

    def learn(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Facts:
        """Warn if the references are not in Latin script, which word-based metrics split differently."""
        warning = text.script_warning(example.answer for example in evaluation)
        if warning:
            warnings.warn(warning, stacklevel=2)
        return Facts()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (
            text.rougeLsum,
            text.rouge1,
            text.rouge2,
            text.rougeL,
            text.bleu,
            text.chrf,
            text.exact_match,
            text.length_ratio,
            text.capped,
        )
