"""Derive lengths, batch and splits from the rows, the base model and what the docs advise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fulltune.config import DataConfig
from fulltune.pipeline.proposal.base_models import BaseModel
from fulltune.tasks.causal_lm import window_count
from fulltune.tasks.prompts import ANSWER_PART

#: Rows whose tokens are counted.
SAMPLE = 2000

#: Rows per micro-batch by task, as in the recipes and demos.
BATCHES = {"classification": 16, "causal-lm": 4, "seq2seq": 8, "text2sql": 16}

#: Fraction of rows whose text must fit completely.
_FIT = 0.99

#: Rows from which a tenth is enough to decide, and below which no row is spared for choosing the best step.
_MANY, _FEW = 1000, 100

#: Rows up to which cross-validation is mentioned, and its folds.
CROSSED_ROWS, FOLDS = 500, 5

#: Rows that decide on a CPU, so that the baselines take minutes.
_EVAL_ROWS = 500

#: Rows up to which all are scored: leaving a few out saves nothing.
_ALL_EVAL_ROWS = 600

#: Tokens per word, for models whose tokenizer is not on this machine.
_TOKENS_PER_WORD = 1.6


@dataclass(frozen=True)
class Lengths:
    """Tokens of texts: the median, the 99th percentile and the maximum."""

    median: int
    p99: int
    longest: int

    def window(self, limit: int | None, step: int = 32) -> int:
        """Return a window that holds 99% of the texts, within the positions of the model."""
        rounded = step * math.ceil((self.p99 + 4) / step)
        return min(rounded, limit or rounded)


def count_tokens(texts: Sequence[str], base: BaseModel | None) -> list[int]:
    """Return the number of tokens of evenly spaced texts: by the tokenizer of the model, or estimated by words."""
    file = base.tokenizer_file if base else None
    sample = list(texts[:: -(-len(texts) // SAMPLE) or 1])
    if file is None:
        return [math.ceil(_TOKENS_PER_WORD * len(text.split())) for text in sample]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoded.ids) for encoded in tokenizer.encode_batch(sample)]


def shared(prompt: int, answer: int) -> int:
    """Return the smallest window that cuts neither a prompt nor its answer, given their tokens.

    A part of the window is reserved for answers, whether they need it or not.
    """
    reserved = int(DataConfig.model_fields["max_target_length"].default)
    return prompt + max(answer, min(reserved, -(-prompt // (ANSWER_PART - 1))))


def count_windows(counts: Sequence[int], window: int) -> float:
    """Return the mean number of windows that documents of these lengths in tokens are divided into, as in training."""
    divided = sum(window_count(count + 1, window) for count in counts)
    return max(1.0, divided / max(1, len(counts)))


def lengths(counts: Sequence[int]) -> Lengths:
    """Return the statistics of token counts."""
    ordered = sorted(counts)
    return Lengths(ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(_FIT * len(ordered)))], ordered[-1])


def scored(rows: int) -> int:
    """Return how many of the rows for evaluation decide."""
    return rows if rows <= _ALL_EVAL_ROWS else _EVAL_ROWS


def held_out(rows: int) -> tuple[float, float | None]:
    """Return the fractions of rows that decide and that choose the best step; None if there are too few rows."""
    return (0.1 if rows >= _MANY else 0.2), (0.1 if rows >= _FEW else None)
