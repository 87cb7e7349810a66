"""How much of what a model generates stands word for word in its training rows.

A model that has learnt rows by heart recites them. The measure is that of McCoy et al. 2023 ("How much do language
models copy from their training data? Evaluating linguistic novelty in text generation using RAVEN"): the share of all
n-grams of the generated texts that occur in the training texts, beside the same share for texts that people wrote on
the same rows. Set phrases of a field (law, tales, SQL) occur in those as well, so the references are the yardstick;
the base, which never saw the rows, is the other. Carlini et al. 2023 ("Quantifying Memorization Across Neural Language
Models") ask for 50 tokens in a row, which answers of at most 128 tokens hardly have room for. RAVEN finds that text
without copying is mostly new from 5 words on; 8 leaves chance behind and still fits several times into a sentence or
two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fulltune.metrics.words import words
from fulltune.records.run import Prediction

#: Words in a row that count as copied when they stand in train.
RUN = 8

#: Whose texts are looked up; few-shot answers may rightly copy from the rows in their prompt.
_SYSTEMS = ("tuned", "zero_shot")


def memorization(predictions: Iterable[Prediction], train: Iterable[str], run: int = RUN) -> dict[str, Any] | None:
    """Shares of runs of words that stand verbatim in train.

    Case, punctuation and spacing do not count (:func:`~fulltune.metrics.words.words`), and a run never crosses two
    training texts. Memory is bounded by the predictions; train is gone through once.

    Args:
        predictions: Of all systems.
        train: The texts that the model was trained to produce.
        run: Words in a row.

    Returns:
        ``{"words": run, "tuned": {"share", "copied", "runs"}, "references": …, "zero_shot": …}``, or None when no
        answer of the tuned model is that long.
    """
    found: dict[str, list[int]] = {name: [] for name in ("tuned", "references", "zero_shot")}
    for prediction in predictions:
        if prediction.system in _SYSTEMS and isinstance(prediction.output, str):
            found[prediction.system] += _runs(prediction.output, run)
            if prediction.system == "tuned" and isinstance(prediction.reference, str):
                found["references"] += _runs(prediction.reference, run)
    if not found["tuned"]:
        return None
    wanted, known = {one for runs in found.values() for one in runs}, set[int]()
    for text in train:
        known |= wanted.intersection(_runs(text, run))
    return {"words": run} | {name: _share(runs, known) for name, runs in found.items() if runs}


def _runs(text: str, run: int) -> Iterator[int]:
    """A 64-bit hash of each run of words."""
    tokens = words(text)
    return (hash(tuple(tokens[start : start + run])) for start in range(len(tokens) - run + 1))


def _share(runs: list[int], known: set[int]) -> dict[str, float]:
    copied = sum(one in known for one in runs)
    return {"share": copied / len(runs), "copied": copied, "runs": len(runs)}
