"""Define the task ``translation``: text to text, decided by chrF, with an additional metric."""

from __future__ import annotations

import numpy as np

from fulltune.metrics import text
from fulltune.metrics.base import Array, Metric
from fulltune.records.run import Prediction
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
    """Translate the column ``source``; the reference is the column ``target``."""

    name = "translation"
    version = 1
    question = "Text"
    answer = "Translation"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return text.chrf, text.bleu, untranslated, text.capped
