"""How rows were asked: shortened prompts, shots that had no room, answers that the model's positions limit.

It is counted from the predictions, which record it row by row, so that answers from the cache are counted as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from fulltune.records.run import Prediction, PromptUse


class PromptCounter:
    """Counts predictions as they come."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._shots: dict[str, Counter[int]] = {}
        self._parts: dict[str, Counter[str]] = {}

    def __call__(self, prediction: Prediction) -> None:
        system, values = prediction.system, prediction.values
        counts = self._counts.setdefault(system, Counter())
        counts["rows"] += 1
        if tokens := int(values.get("cut_tokens", 0)):
            counts.update(cut_rows=1, cut_tokens=tokens)
            self._parts.setdefault(system, Counter()).update(str(values["cut"]).split(", "))
        if "shots" in values:
            self._shots.setdefault(system, Counter())[int(values["shots"])] += 1
        counts["limited_rows"] += "limit" in values

    def uses(self) -> dict[str, PromptUse]:
        """Return what was counted, by system."""
        return {
            system: PromptUse(
                **counts,
                cut_parts=dict(self._parts.get(system, {})),
                shots=dict(sorted(self._shots.get(system, {}).items())),
            )
            for system, counts in self._counts.items()
        }


def prompt_uses(predictions: Iterable[Prediction]) -> dict[str, PromptUse]:
    """Return how each system was asked."""
    counter = PromptCounter()
    for prediction in predictions:
        counter(prediction)
    return counter.uses()


def sentences(uses: Mapping[str, PromptUse], shots: int = 0) -> Iterator[str]:
    """Return a sentence for everything that did not fit.

    Args:
        uses: How each system was asked.
        shots: How many each few-shot prompt should hold.
    """
    for system, use in uses.items():
        if use.cut_rows:
            parts = " and the ".join(use.cut_parts)
            yield (
                f"{system}: {use.cut_rows} of {use.rows} rows were asked with a shortened prompt "
                f"({use.cut_tokens:,} tokens of the {parts} left out)."
            )
        fewer = {count: rows for count, rows in use.shots.items() if count < shots}
        if fewer:
            listed = ", ".join(f"{count}: {rows}" for count, rows in fewer.items())
            yield (
                f"{system}: {sum(fewer.values())} of {use.rows} rows had no room for all {shots} shots in the model's "
                f"window (rows by the shots that fitted: {listed})."
            )
        if use.limited_rows:
            yield (
                f"{system}: {use.limited_rows} of {use.rows} answers had fewer positions left than "
                "evaluation.max_new_tokens, and end at the model's last one."
            )
