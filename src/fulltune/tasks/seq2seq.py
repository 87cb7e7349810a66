"""Task ``seq2seq``: text to text (summaries, translations, rewriting), with an encoder-decoder or a decoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fulltune.data.chats import MESSAGES
from fulltune.metrics import text
from fulltune.metrics.base import Metric
from fulltune.tasks import prompts
from fulltune.tasks.base import Column, Example, Facts
from fulltune.tasks.generation import TextToText

if TYPE_CHECKING:
    from fulltune.data.load import Row


class Seq2Seq(TextToText):
    """Text to text, from the columns ``source`` and ``target``, or from chats."""

    name = "seq2seq"
    version = 1
    inputs = ("source", "messages")
    baselines = ("copy", "lead", "nearest", "zero_shot", "few_shot")

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        if self.config.data.has_chats(("source",), available):
            return (Column("messages", list),)
        return Column("source", str), Column("target", str)

    def example(self, row: Row) -> Example:
        if "prompt" in row.fields:
            return Example(row.id, row.fields["prompt"], row.fields["completion"], prompts.chat_meta(row.fields))
        return Example(row.id, row.fields["source"], row.fields["target"])

    def request(self, row: Mapping[str, Any], place: str = "") -> Example:
        return replace(super().request(row, place), meta=prompts.chat_meta(row))

    def reads(self, example: Example) -> str:
        return str(example.meta.get(MESSAGES, ""))

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
