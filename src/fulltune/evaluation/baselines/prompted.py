"""Ask the base model, without and with examples in its context.

A decoder or an encoder-decoder that is asked for a label can be asked in several ways, which differ by tens of points:
in a plain prompt or in the chat template, scoring the label with or without an end token, and with or without the
probability of each label whatever the text is. The way with the best accuracy on rows of train is taken.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax, logsumexp

from fulltune.evaluation.baselines.base import FEWEST_ROWS, Answers, Given
from fulltune.evaluation.baselines.shot_regression import by_regression
from fulltune.metrics.base import Array
from fulltune.records.run import Prediction
from fulltune.runtime import distributed
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Predictor
from fulltune.tasks.classification import Classification

if TYPE_CHECKING:
    from fulltune.tasks.label_words import Asking, LabelScorer


def usual(name: str, given: Given) -> Predictor:
    """Return the predictor that asks the base in the usual way; its own classification head answers if it has one."""
    own, task = given.base.with_own_head, given.task
    if name != "zero_shot" or own is None:
        return task.predictor(given.base, name, given.shots if name == "few_shot" else ())

    def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
        yield from task.predictor(own(), name)(examples)

    return predict


def zero_shot(given: Given, examples: Sequence[Example]) -> Answers:
    """Ask the base without examples; a checkpoint with its own classification head answers with that."""
    found = None if given.base.with_own_head is not None else _by_likelihood("zero_shot", given, examples, ())
    return found or Answers(distributed.map_sharded(usual("zero_shot", given), examples))


NAMES = ("zero_shot", "few_shot")

#: A row with examples before it costs about as much as this many without, because prompts share their beginning.
_COST = 2


def few_shot_rows(given: Given, examples: Sequence[Example]) -> tuple[Sequence[Example], str]:
    """Return the rows to answer with examples in the context, and a note if they are not all rows."""
    if given.rows is None or len(examples) <= (allowed := max(FEWEST_ROWS, given.rows // _COST)):
        return examples, ""
    chosen = sorted(random.Random(given.settings.seed).sample(range(len(examples)), allowed))
    note = f"{allowed:,} of {len(examples):,} evaluation rows, drawn at random"
    return [examples[number] for number in chosen], note


def few_shot(given: Given, examples: Sequence[Example]) -> Answers:
    """Ask the base with examples from train; an encoder gets a classifier of its vectors of them."""
    found = _by_likelihood("few_shot", given, examples, given.shots) or by_regression(given, examples)
    return found or Answers(distributed.map_sharded(usual("few_shot", given), examples))


#: Rows of train that choose how labels are asked for.
CHOOSING_ROWS = 40

#: Texts without content (Zhao et al. 2021, "Calibrate Before Use", section 5).
_NO_CONTENT = ("N/A", "", "[MASK]")


def _by_likelihood(system: str, given: Given, examples: Sequence[Example], shots: Sequence[Example]) -> Answers | None:
    """Return the answers of a model that writes labels, asked in the best way; None for all other models and tasks."""
    scorer, task = _scorer(given), given.task
    if scorer is None or not isinstance(task, Classification):
        return None
    asking, setting = _best_asking(scorer, given, shots)
    rows = distributed.map_sharded(lambda part: scorer.asked(part, shots, asking), examples)
    return Answers(task.predicted(system, examples, rows), setting)


def choosing_rows(name: str, given: Given) -> int:
    """Return how many rows are scored before the first answer, to choose how to ask."""
    scorer = None if name == "zero_shot" and given.base.with_own_head is not None else _scorer(given)
    return 0 if scorer is None else len(list(_ways(scorer, given))) * min(CHOOSING_ROWS, len(given.train))


def _scorer(given: Given) -> LabelScorer | None:
    """Return the scorer of labels of a model that writes them; None for all other models and tasks."""
    task = given.task
    return task.scorer(given.base) if isinstance(task, Classification) and given.base.family != "encoder" else None


def _best_asking(scorer: LabelScorer, given: Given, shots: Sequence[Example]) -> tuple[Asking, str]:
    """Return the way to ask with the best accuracy on rows of train, and its name; of several, the first."""
    shown = {shot.id for shot in shots}
    pool = [row for row in given.train if row.id not in shown]
    rows = random.Random(given.settings.seed).sample(pool, min(CHOOSING_ROWS, len(pool)))
    if not rows:
        return scorer.usual, ""
    right = np.array([[label in row.labels for label in scorer.labels] for row in rows])
    best, best_accuracy, name = scorer.usual, -1.0, ""
    for asking in _ways(scorer, given):
        logs = _log_probabilities(scorer, rows, shots, asking)
        empty = _log_probabilities(scorer, [Example("", text, "") for text in _NO_CONTENT], shots, asking)
        priors = {"": np.zeros(len(scorer.labels)), "contextual": _log_mean(empty), "batch": _log_mean(logs)}
        for calibration, prior in priors.items():
            accuracy = right[np.arange(len(rows)), (logs - prior).argmax(axis=1)].mean()
            if accuracy > best_accuracy:
                best_accuracy, name = accuracy, _named(asking, calibration)
                best = replace(asking, prior=tuple(prior.tolist()) if calibration else ())
    return best, f"{name} (accuracy {best_accuracy:.2f} on {len(rows)} rows of train)"


def _ways(scorer: LabelScorer, given: Given) -> Iterator[Asking]:
    """Yield the usual way to ask, then the others."""
    from fulltune.tasks.label_words import Asking

    usual = scorer.usual
    can_chat = prompts.wants_chat(given.base, "auto") and given.task.config.data.chat != "off"
    for chat in dict.fromkeys((usual.chat, can_chat, False)):
        yield Asking(chat)
        yield Asking(chat, ends=False)


def _named(asking: Asking, calibration: str) -> str:
    parts = ["chat template" if asking.chat else "plain prompt", "" if asking.ends else "labels without an end token"]
    return ", ".join(filter(None, [*parts, f"{calibration} calibration" if calibration else ""]))


def _log_probabilities(scorer: LabelScorer, rows: Sequence[Example], shots: Sequence[Example], asking: Asking) -> Array:
    """Return log-probabilities ``(rows, labels)``."""
    scored = distributed.map_sharded(lambda part: scorer.by_likelihood(part, shots, asking), rows)
    return np.asarray(log_softmax([values for values, _ in scored], axis=1))


def _log_mean(logs: Array) -> Array:
    """Return the logarithm of the mean probability of each label, ``(labels,)``.

    Of rows of train this is the prior of batch calibration (Zhou et al. 2024, "Batch Calibration", equation 3).
    """
    return np.asarray(logsumexp(logs, axis=0) - np.log(len(logs)))
