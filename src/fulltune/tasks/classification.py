"""Task ``classification``: one or several labels per text, scored by macro-F1.

The tuned model has a head with one logit per label; the label names are saved in its config. Predictions of the base
model, which has no such head, are in :mod:`fulltune.tasks.label_words`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import tee
from typing import TYPE_CHECKING, Any

import numpy as np

from fulltune.config import DataConfig
from fulltune.errors import DataError
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.classification import calibration, classification_metrics, confusion, per_class
from fulltune.records.run import Prediction
from fulltune.tasks import prompts
from fulltune.tasks.base import Column, Example, Facts, Features, Predictor, Task
from fulltune.tasks.class_probabilities import DECIMALS, class_probabilities
from fulltune.tasks.prompts import Fitted

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

    from fulltune.data.load import Row
    from fulltune.models.bundle import Bundle
    from fulltune.tasks.label_words import Answer, LabelScorer

_DEFAULTS = DataConfig.model_fields
_LOG = logging.getLogger(__name__)


class Classification(Task):
    """Classification, from the columns ``text`` and ``label`` (one) or ``labels`` (a list of any length)."""

    name = "classification"
    version = 1
    head = "classification"
    families = ("encoder", "decoder", "encoder-decoder")
    baselines = ("majority", "tfidf", "linear_probe", "zero_shot", "few_shot")

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        several = self._has_several(available)
        if self.config.data.label_separator is not None and not several:
            raise DataError(
                f"data.label_separator is set, but the column {self.config.data.label!r} has one label per row",
                expected="a column with several labels per row",
                fix=f"set `data.labels: {self.config.data.label}` to split its cells, or remove data.label_separator",
                field="data.labels",
            )
        return Column("text", str), Column("labels", list, may_be_empty=True) if several else Column("label", str)

    def _has_several(self, available: Sequence[str]) -> bool:
        """Return True if the column of lists is read: the one that the config names, otherwise the one that exists."""
        data = self.config.data
        if data.labels not in available or data.label not in available:
            return data.labels in available
        if data.label == _DEFAULTS["label"].default and data.labels != _DEFAULTS["labels"].default:
            return True
        if data.label != data.labels:
            _LOG.info("the data has the columns %r and %r: %r is read", data.label, data.labels, data.label)
        return False

    def example(self, row: Row) -> Example:
        if "labels" in row.fields:
            return Example(row.id, row.fields["text"], tuple(row.fields["labels"]))
        return Example(row.id, row.fields["text"], row.fields["label"])

    def learn(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Facts:
        """Return the label names of the config in their order, or all that occur, sorted.

        Sorting makes the head reproducible. Integers are sorted as numbers: class 2 precedes class 10.
        """
        examples = [*train, *evaluation]
        present = {label for example in examples for label in example.labels}
        return Facts(
            labels=tuple(self.config.data.label_names or _sorted_labels(present)),
            multi_label=any(not isinstance(example.target, str) for example in examples),
        )

    def adopt(self, bundle: Bundle) -> Self:
        """Return this task with the label names of a tuned model, in the order of its logits.

        Raises:
            DataError: The data has labels that the model does not have.
        """
        labels = tuple(str(name) for name in (bundle.model.config.id2label or {}).values())
        unknown = sorted(set(self.labels) - set(labels))
        if unknown:
            raise DataError(
                f"{len(unknown)} labels in the data are unknown to the model: {', '.join(map(repr, unknown[:5]))}",
                expected=f"the {len(labels)} labels that it was trained with",
                fix="remove those rows, or tune a model on them",
                field="data.eval",
            )
        return self.with_facts(replace(self.facts, labels=labels))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return classification_metrics(self.labels, self.multi_label)

    def begin(self, bundle: Bundle, train: Sequence[Example]) -> None:
        """With several labels per row, initialize the head's bias with the label frequencies (Lin et al. 2017, 4.1).

        A new head predicts one half for every label, while most labels apply to a few percent of the rows. The loss
        then falls fastest if the encoder predicts "none" for every input, a state that small models do not leave.
        """
        if not self.multi_label:
            return
        frequency = np.array([np.mean([label in example.labels for example in train]) for label in self.labels])
        bias = _output_bias(bundle, len(self.labels))
        if bias is not None:
            import torch
            from scipy.special import logit

            with torch.no_grad():
                bias.copy_(torch.tensor(logit(np.clip(frequency, 1e-3, 1 - 1e-3)), dtype=bias.dtype))

    def class_weights(self, train: Sequence[Example]) -> list[float] | None:
        """Return ``rows / (labels × count)`` for each label, as scikit-learn's ``class_weight="balanced"`` does."""
        if self.config.train.class_weights == "none":
            return None
        counts = Counter(label for example in train for label in example.labels)
        return [len(train) / (len(self.labels) * max(1, counts[label])) for label in self.labels]

    def encode(self, example: Example, bundle: Bundle) -> list[Features]:
        ids, lost = self._input_ids(example.input, bundle)
        removed = {"input": lost} if lost else {}
        chosen = example.labels
        if self.multi_label:
            return [Features(ids, [float(label in chosen) for label in self.labels], example.id, removed)]
        return [Features(ids, self.labels.index(chosen[0]), example.id, removed)]

    def predictor(self, bundle: Bundle, system: str, shots: Sequence[Example] = ()) -> Predictor:
        def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
            return self.predicted(system, examples, self._probabilities(bundle, examples, shots))

        return predict

    def predicted(self, system: str, examples: Sequence[Example], rows: Iterable[Answer]) -> Iterator[Prediction]:
        """Yield the prediction for the probabilities and further values of each example."""
        for example, (probabilities, values) in zip(examples, rows, strict=True):
            result = self.prediction(system, example, probabilities)
            confidence = {name: round(value, DECIMALS) for name, value in result.values.items() if name == "confidence"}
            yield result.model_copy(update={"values": result.values | confidence | values})

    def scorer(self, bundle: Bundle) -> LabelScorer:
        """Return the scorer of labels for a model without a classification head."""
        from fulltune.tasks.label_words import LabelScorer

        return LabelScorer(bundle, self.labels, self.multi_label, self.config, self.day)

    def answers(self, bundle: Bundle, system: str, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yield the label, or the list of labels, as ``prediction``, and the ``probabilities`` of all labels."""
        for example, (probabilities, values) in zip(examples, self._probabilities(bundle, examples), strict=True):
            output = self.prediction(system, example, probabilities).output
            rounded = np.round(probabilities, DECIMALS).tolist()
            yield {
                "prediction": output if isinstance(output, str) else list(output),
                "probabilities": dict(zip(self.labels, rounded, strict=True)),
            } | prompts.truncated(values)

    def _probabilities(
        self, bundle: Bundle, examples: Sequence[Example], shots: Sequence[Example] = ()
    ) -> Iterator[Answer]:
        """Yield the probabilities ``(labels,)`` of each example, and the values to record of its prompt."""
        if bundle.head != "classification":
            yield from self._without_head(bundle, examples, shots)
            return
        inputs, inputs_later = tee(self._input_ids(example.input, bundle) for example in examples)
        size = min(self.config.evaluation.batch_size, max(1, len(examples)))
        rows = class_probabilities(bundle, (ids for ids, _ in inputs), size, multi_label=self.multi_label)
        for probabilities, (ids, lost) in zip(rows, inputs_later, strict=True):
            yield probabilities, Fitted(ids, removed={"input": lost} if lost else {}).values()

    def prediction(self, system: str, example: Example, probabilities: Array) -> Prediction:
        """Predict the label with the highest probability, or all labels above one half if several may apply."""
        values: dict[str, Any]
        if self.multi_label:
            output: Any = tuple(np.asarray(self.labels)[probabilities > 0.5].tolist())
            values = {"probabilities": dict(zip(self.labels, np.round(probabilities, DECIMALS).tolist(), strict=True))}
        else:
            best = int(probabilities.argmax())
            output = self.labels[best]
            values = {"confidence": float(probabilities[best])}
        return Prediction(
            system=system, id=example.id, input=example.input, reference=example.target, output=output, values=values
        )

    def details(self, predictions: Iterable[Prediction]) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "multi_label": self.multi_label,
            "per_class": per_class(predictions, self.labels),
            "confusion": None
            if self.multi_label
            else {"labels": list(self.labels), "matrix": confusion(predictions, self.labels)},
            "calibration": calibration(predictions),
        }

    def _without_head(self, bundle: Bundle, examples: Sequence[Example], shots: Sequence[Example]) -> Iterator[Answer]:
        scorer = self.scorer(bundle)
        return scorer.few_shot(examples, shots) if shots else scorer.zero_shot(examples)

    def longest_input(self, bundle: Bundle) -> int:
        return self.window(bundle)

    def _input_ids(self, text: str, bundle: Bundle) -> tuple[list[int], int]:
        """Return token ids of an input, truncated by the tokenizer and never empty, and the number of lost tokens."""
        window = self.longest_input(bundle)
        ids = list(bundle.tokenizer(text, truncation=False, verbose=False).input_ids) or prompts.opening_ids(bundle)
        if len(ids) <= window:
            return _one_end(ids, bundle), 0
        kept = list(bundle.tokenizer(text, truncation=True, max_length=window).input_ids)
        return _one_end(kept, bundle), len(ids) - len(kept)


def _sorted_labels(labels: Iterable[str]) -> list[str]:
    """Return the labels in alphabetical order, or in numerical order if all of them are integers."""
    labels = list(labels)
    if all(re.fullmatch("-?[0-9]+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _one_end(ids: list[int], bundle: Bundle) -> list[int]:
    """Return the ids with only their last end token, for a classification head of an encoder-decoder.

    Such a head reads the state at the end token, and rejects batches whose rows have different numbers of them.
    """
    end = bundle.model.config.eos_token_id if bundle.family == "encoder-decoder" else None
    if end is None or bundle.head != "classification" or ids.count(end) < 2:
        return ids
    last = len(ids) - 1 - ids[::-1].index(end)
    return [token for place, token in enumerate(ids) if token != end or place == last]


def _output_bias(bundle: Bundle, labels: int) -> nn.Parameter | None:
    """Return the bias of the last layer with one output per label, or None if it has none (GPT-2, Llama)."""
    from torch import nn

    layers = [layer for layer in bundle.model.modules() if isinstance(layer, nn.Linear)]
    heads = [layer for layer in layers if layer.out_features == labels]
    return heads[-1].bias if heads else None
