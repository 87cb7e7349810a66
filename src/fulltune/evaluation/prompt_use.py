"""Count truncated prompts, omitted few-shot examples, and answers limited by the model's positions.

Counts are taken from predictions, which record these facts per row, so that cached predictions are included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from fulltune.records.run import Prediction, PromptUse


class PromptCounter:
    """Callable that counts the predictions that it is called with."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._shots: dict[str, Counter[int]] = {}
        self._parts: dict[str, Counter[str]] = {}

    def __call__(self, prediction: Prediction) -> None:
        system = prediction.system
        values = prediction.values
        counts = self._counts.setdefault(system, Counter())
        counts["rows"] += 1
        if tokens := int(values.get("removed_tokens", 0)):
            counts.update(truncated_rows=1, removed_tokens=tokens)
            self._parts.setdefault(system, Counter()).update(str(values["removed_parts"]).split(", "))
        if "shots" in values:
            self._shots.setdefault(system, Counter())[int(values["shots"])] += 1
        counts["limited_rows"] += "limit" in values
        for name in ("unlisted_labels", "cut_labels"):  # the same in all prompts of a system
            counts[name] = max(counts[name], int(values.get(name, 0)))

    def uses(self) -> dict[str, PromptUse]:
        """Return the counts by system."""
        uses = {}
        for system, counts in self._counts.items():
            truncated_parts = dict(self._parts.get(system, {}))
            shots = dict(sorted(self._shots.get(system, {}).items()))
            uses[system] = PromptUse(**counts, truncated_parts=truncated_parts, shots=shots)
        return uses


def prompt_uses(predictions: Iterable[Prediction]) -> dict[str, PromptUse]:
    """Return the counts of all predictions by system."""
    counter = PromptCounter()
    for prediction in predictions:
        counter(prediction)
    return counter.uses()


def sentences(uses: Mapping[str, PromptUse], shots: int = 0) -> Iterator[str]:
    """Yield a sentence for everything that did not fit into the model's window.

    Args:
        uses: Counts by system.
        shots: Number of examples that each few-shot prompt should contain.
    """
    for system, use in uses.items():
        if use.truncated_rows:
            parts = " and the ".join(use.truncated_parts)
            yield (
                f"{system}: {use.truncated_rows} of {use.rows} prompts were truncated "
                f"({use.removed_tokens:,} tokens of the {parts} removed)."
            )
        fewer = {count: rows for count, rows in use.shots.items() if count < shots}
        if fewer:
            listed = ", ".join(f"{count}: {rows}" for count, rows in fewer.items())
            yield (
                f"{system}: {sum(fewer.values())} of {use.rows} prompts had no room for all {shots} shots in the "
                f"model's window (prompts by number of shots: {listed})."
            )
        if use.unlisted_labels:
            noun = "label has" if use.unlisted_labels == 1 else "labels have"
            yield f"{system}: {use.unlisted_labels:,} {noun} no room in the prompts: scored without being listed."
        if use.cut_labels:
            noun = "label name is" if use.cut_labels == 1 else "label names are"
            yield f"{system}: {use.cut_labels:,} {noun} too long for the model: only the beginning is scored."
        if use.limited_rows:
            yield (
                f"{system}: {use.limited_rows} of {use.rows} answers had fewer positions left than "
                "evaluation.max_new_tokens, and end at the model's last position."
            )
