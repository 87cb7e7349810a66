"""Measure how much of the generated text occurs verbatim in the training rows.

A model that memorized rows repeats them. The measure is that of McCoy et al. 2023 ("How much do language models copy
from their training data? Evaluating linguistic novelty in text generation using RAVEN"): the fraction of all n-grams of
the generated texts that occur in the training texts, compared with the same fraction for human texts on the same rows.
Set phrases of a domain (law, tales, SQL) occur in these too, so the references are one baseline; the base model, which
was not trained on the rows, is the other. Carlini et al. 2023 ("Quantifying Memorization Across Neural Language
Models") use 50 consecutive tokens, which is too long for answers of at most 128 tokens. RAVEN reports that text without
copying is mostly novel from 5 words on; 8 words exclude chance and still occur several times in a sentence or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fulltune.metrics.words import words
from fulltune.records.run import Prediction

#: Number of consecutive words that count as copied if they occur in train.
RUN = 8

#: Systems that are measured; few-shot answers may legitimately copy from the examples in their prompt.
_SYSTEMS = ("tuned", "zero_shot")


def memorization(predictions: Iterable[Prediction], train: Iterable[str], run: int = RUN) -> dict[str, Any] | None:
    """Return the fractions of word sequences that occur verbatim in train.

    Case, punctuation and spacing are ignored (:func:`~fulltune.metrics.words.words`), and a sequence never spans two
    training texts. Memory is bounded by the predictions; train is read once.

    Args:
        predictions: Predictions of all systems.
        train: The texts that the model was trained to produce.
        run: Number of consecutive words.

    Returns:
        ``{"words": run, "tuned": {"share", "copied", "runs"}, "references": …, "zero_shot": …}``, or None if no answer
        of the tuned model is that long.
    """
    hashes: dict[str, list[int]] = {name: [] for name in ("tuned", "references", "zero_shot")}
    for prediction in predictions:
        if prediction.system in _SYSTEMS and isinstance(prediction.output, str):
            hashes[prediction.system] += _runs(prediction.output, run)
            if prediction.system == "tuned" and isinstance(prediction.reference, str):
                hashes["references"] += _runs(prediction.reference, run)
    if not hashes["tuned"]:
        return None
    wanted = {value for runs in hashes.values() for value in runs}
    known = set[int]()
    for text in train:
        known |= wanted.intersection(_runs(text, run))
    return {"words": run} | {name: _counts(runs, known) for name, runs in hashes.items() if runs}


def _runs(text: str, run: int) -> Iterator[int]:
    """Return a 64-bit hash of each sequence of ``run`` words."""
    tokens = words(text)
    return (hash(tuple(tokens[start : start + run])) for start in range(len(tokens) - run + 1))


def _counts(runs: list[int], known: set[int]) -> dict[str, float]:
    copied = sum(value in known for value in runs)
    return {"share": copied / len(runs), "copied": copied, "runs": len(runs)}
