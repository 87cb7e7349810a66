"""Model text by n-grams of bytes: what a language model must beat to be worth anything on this text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.evaluation.baselines.base import Answers, Given
from fulltune.evaluation.baselines.labels import sample
from fulltune.metrics.base import Array
from fulltune.records.run import Prediction
from fulltune.tasks import prompts
from fulltune.tasks.base import Example
from fulltune.tasks.causal_lm import CausalLM

Codes = NDArray[np.uint64]

#: Length of the longest n-gram: as many bytes as fit into one integer.
ORDER = 8

#: Number of characters of train that are read.
CHARACTERS = 4_000_000

#: Bounds of the discounts of n-grams that occur once, twice and more often. A discount of 0 would leave no probability
#: for bytes that never followed a context.
_BOUNDS = ((0.1, 1.0), (0.1, 2.0), (0.1, 3.0))

_BYTE = np.uint64(8)


def ngram(given: Given, examples: Sequence[Example]) -> Answers:
    """Score texts by a model of byte n-grams of train (interpolated modified Kneser-Ney)."""
    task, base = given.task, given.base
    if not isinstance(task, CausalLM):
        raise TypeError(f"the task {task.name!r} names a baseline for likelihoods but has none")
    train, _, note = sample(given.train, (), lambda row: len(row.answer), CHARACTERS, given.settings.seed)
    model = ByteModel((row.input.encode(), row.answer.encode()) for row in train)

    def scored() -> Iterator[Prediction]:
        for row in examples:
            context, text = task.scored_bytes(row, base)
            tokens = len(prompts.text_ids(base, row.answer)) - (context != row.input.encode())
            nll = float(model.nll(context, text).sum())
            values = {"nll": nll, "tokens": tokens, "bytes": len(text)}
            yield Prediction(system="ngram", id=row.id, input=row.input, reference="", output="", values=values)

    return Answers(scored(), f"up to {ORDER} bytes, interpolated modified Kneser-Ney", note)


class ByteModel:
    """Probabilities of the next byte by interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999, section 3).

    The probability of a byte after ``k - 1`` others is the discounted count of the n-gram, plus the discounted mass
    times the probability after ``k - 2``. Below the longest, the count of an n-gram is the number of different bytes
    that precede it. The shortest is interpolated with a uniform distribution over 256 bytes, so that probabilities are
    above 0 and sum to one after every context.

    Args:
        texts: Pairs of a context, which is not predicted, and a text.
    """

    def __init__(self, texts: Iterable[tuple[bytes, bytes]]) -> None:
        codes = [_codes(context, text) for context, text in texts]
        grams, counts = np.unique(np.concatenate(codes or [np.empty(0, np.uint64)]), return_counts=True)
        self._levels = list[_Level]()
        for size in range(ORDER, 0, -1):
            self._levels.insert(0, _Level(grams, counts.astype(np.float64)))
            grams, counts = np.unique(grams & _mask(size - 1), return_counts=True)

    def nll(self, context: bytes, text: bytes) -> Array:
        """Return −ln p of each byte of a text after a context, ``(bytes,)``."""
        codes = _codes(context, text)
        probability = np.full(len(codes), 1 / 256)
        for size, level in enumerate(self._levels, start=1):
            probability = level.interpolated(codes & _mask(size), probability)
        return np.asarray(-np.log(probability))


class _Level:
    """Discounted counts of the n-grams of one length, sorted by their codes."""

    def __init__(self, grams: Codes, counts: Array) -> None:
        self.grams = grams
        self.contexts, starts = np.unique(grams >> _BYTE, return_index=True)
        discounts = _discounts(counts)[np.minimum(counts, 3).astype(int) - 1] if len(counts) else counts
        totals = np.add.reduceat(counts, starts) if len(counts) else counts
        mass = np.add.reduceat(discounts, starts) if len(counts) else counts
        self.left = mass / np.maximum(totals, 1)
        self.own = (counts - discounts) / np.repeat(totals, np.diff(starts, append=len(grams)))

    def interpolated(self, codes: Codes, shorter: Array) -> Array:
        """Return the probabilities of n-grams, given those without their first byte; both ``(n,)``."""
        left = _looked_up(self.contexts, self.left, codes >> _BYTE, 1.0)
        return _looked_up(self.grams, self.own, codes, 0.0) + left * shorter


def _looked_up(keys: Codes, values: Array, asked: Codes, missing: float) -> Array:
    if not len(keys):
        return np.full(len(asked), missing)
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[places] == asked, values[places], missing)


def _discounts(counts: Array) -> Array:
    """Return the discounts of counts of 1, 2 and more (Chen & Goodman 1999, equation 26)."""
    one, two, three, four = (float((counts == number).sum()) for number in (1, 2, 3, 4))
    y = one / (one + 2 * two) if one else 0.5
    ratios = (2 * two / one if one else 0.0, 3 * three / two if two else 0.0, 4 * four / three if three else 0.0)
    raw = [number - y * ratio for number, ratio in enumerate(ratios, start=1)]
    return np.array([min(max(value, low), high) for value, (low, high) in zip(raw, _BOUNDS, strict=True)])


def _mask(size: int) -> Any:
    return np.uint64((1 << (8 * size)) - 1)


def _codes(context: bytes, text: bytes) -> Codes:
    """Return each byte of a text with those before it as one integer, ``(bytes,)``; the text begins after zeros."""
    before = (bytes(ORDER - 1) + context)[-(ORDER - 1) :]
    sequence = np.frombuffer(before + text, dtype=np.uint8).astype(np.uint64)
    codes = np.zeros(len(text), dtype=np.uint64)
    for place in range(ORDER):
        codes |= sequence[ORDER - 1 - place : ORDER - 1 - place + len(text)] << np.uint64(8 * place)
    return codes
