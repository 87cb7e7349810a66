"""Compare an exported model with its original: answers, scores, logits and time per row."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fulltune.config import Config
from fulltune.errors import FulltuneError
from fulltune.evaluation.evaluate import Evaluation, evaluate
from fulltune.evaluation.prediction_files import Answers
from fulltune.evaluation.verdict import MARGIN, verdict
from fulltune.models import fast_paths
from fulltune.models.bundle import Bundle
from fulltune.models.fast_kernels import fast_kernels
from fulltune.models.teacher_forcing import decoder_input_ids
from fulltune.records.export import ExportVerdict, Latency, LogitDifference
from fulltune.records.run import Prediction, Score
from fulltune.records.verdict import PairVerdict
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.runtime.progress import Progress
from fulltune.tasks.base import Example, Features, Task

#: Inputs whose logits are compared: of classifiers, and of models with a vocabulary.
_CLASSIFIED, _WRITTEN = 128, 16

#: Rows that are timed, and the seconds after which no further row is.
_TIMED, _PATIENCE = 32, 20.0

#: Lengths of random inputs for a model without rows.
_LENGTHS = (4, 11, 17, 32)


@dataclass(frozen=True)
class Compared:
    """Result of a comparison on rows.

    Attributes:
        rows, equal: Number of rows, and of those with equal answers.
        scores, parent_scores: Scores of the exported model and of its original.
        pair: The paired comparison; ``a`` is the original.
        verdict: On the exported model.
    """

    rows: int
    equal: int
    scores: dict[str, Score]
    parent_scores: dict[str, Score]
    pair: PairVerdict
    verdict: ExportVerdict


@dataclass(frozen=True)
class Comparer:
    """Compare two models by a task with its config, and rows.

    Attributes:
        task: The task.
        config: Its config.
        rows: The evaluation rows.
        left_out: Ids of rows that do not count.
        progress: Where stages report.
    """

    task: Task
    config: Config
    rows: Sequence[Example]
    left_out: frozenset[str]
    progress: Progress

    def compare(self, parent: Bundle, artifact: Bundle, name: str, margin: float | None) -> Compared:
        """Score both models on the rows.

        Args:
            parent: The original.
            artifact: The exported model.
            name: Name of its format.
            margin: Smallest loss that matters.
        """
        settings = self.config.evaluation
        before, one = self._scored(parent, "original")
        after, two = self._scored(artifact, name)
        pair = verdict(
            one,
            two,
            metric=self.task.metrics[0].name,
            margin=MARGIN if margin is None else margin,
            require="not-worse",
            min_effect=settings.min_effect,
            confidence=settings.confidence,
            resamples=settings.resamples,
        )
        assert isinstance(pair, PairVerdict)
        counted = [row for row in zip(one.rows, two.rows, strict=True) if row[0].id not in self.left_out]
        equal = sum(a.output == b.output for a, b in counted)
        return Compared(len(counted), equal, after.scores(settings), before.scores(settings), pair, judged(pair))

    def _scored(self, bundle: Bundle, name: str) -> tuple[Evaluation, Answers]:
        found = list[Prediction]()
        with self.progress.stage(name, total=len(self.rows), unit="row") as bar, self._computing(bundle):
            scored = evaluate(
                self.task.predictor(bundle, "tuned"),
                self.rows,
                self.task.metrics,
                system="tuned",
                sink=found.append,
                advance=bar.advance,
            )
        answers = Answers(
            name=name,
            rows=tuple(found),
            metric=self.task.metrics[0].name,
            labels=self.task.labels,
            multi_label=self.task.multi_label,
            left_out=self.left_out,
        )
        return scored.without(self.left_out), answers

    def logits(self, parent: Bundle, artifact: Bundle) -> LogitDifference:
        """Return the difference of the logits on some rows, or on random tokens if there are none."""
        inputs = list(self.features(parent))
        source = "evaluation rows" if inputs else "random tokens"
        if not inputs:
            inputs = [Features(ids, ids, "") for ids in fast_paths.probes(parent.model, _LENGTHS)]
        largest, size = 0.0, 0.0
        with self._computing(parent):
            expected = [logits_of(parent, one) for one in inputs]
        with self._computing(artifact):
            for one, logits in zip(inputs, expected, strict=True):
                largest = max(largest, float((logits_of(artifact, one) - logits).abs().max()))
                size = max(size, float(logits.abs().max()))
        relative = largest / size if size else largest
        return LogitDifference.model_validate(
            {"rows": len(inputs), "largest": largest, "relative": relative, "source": source}
        )

    def features(self, bundle: Bundle, rows: Sequence[Example] | None = None) -> Iterator[Features]:
        """Yield the inputs of some rows as token ids; rows without one are left out."""
        most = _CLASSIFIED if self.task.head == "classification" else _WRITTEN
        for example in spread(self.rows if rows is None else rows, most):
            try:
                yield from self.task.encode(example, bundle)[:1]
            except (FulltuneError, ValueError):  # e.g. a label that the model does not have
                continue

    def latency(self, parent: Bundle, artifact: Bundle) -> Latency | None:
        """Return the time per row of both models, one row at a time; None without rows."""
        rows = spread(self.rows, _TIMED)
        if not rows:
            return None
        elapsed: tuple[list[float], list[float]] = ([], [])
        busy: tuple[list[float], list[float]] = ([], [])
        begun = time.perf_counter()
        for number, example in enumerate([rows[0], *rows]):  # the first one warms up
            for side, bundle in enumerate((parent, artifact)):
                seconds, processor = self._timed(bundle, example)
                if number:
                    elapsed[side].append(seconds)
                    busy[side].append(processor)
            if number and time.perf_counter() - begun > _PATIENCE:
                break
        medians = [round(1000 * statistics.median(values), 3) for values in (*elapsed, *busy)]
        names = ("parent_ms", "artifact_ms", "parent_cpu_ms", "artifact_cpu_ms")
        return Latency(rows=len(elapsed[0]), threads=torch.get_num_threads(), **dict(zip(names, medians, strict=True)))

    def _timed(self, bundle: Bundle, example: Example) -> tuple[float, float]:
        with self._computing(bundle):
            started, busy = time.perf_counter(), time.process_time()
            list(self.task.answers(bundle, "tuned", [example]))
            return time.perf_counter() - started, time.process_time() - busy

    @contextmanager
    def _computing(self, bundle: Bundle) -> Iterator[None]:
        with pinned_kernels(self.config.speed.kernels), fast_kernels(bundle.model):
            yield


def judged(pair: PairVerdict) -> ExportVerdict:
    """Return the verdict on an exported model from its comparison with the original."""
    assert pair.not_worse is not None
    if pair.not_worse.verdict == "not worse":
        return "not worse"
    loss = -pair.difference.value if pair.direction == "higher" else pair.difference.value
    return "worse" if loss >= pair.not_worse.margin * (1 - 1e-9) else "within the margin"


@torch.inference_mode()
def logits_of(bundle: Bundle, features: Features) -> Tensor:
    """Return the logits of one input, computed alone: ``(labels,)``, or ``(T, V)`` of a language model."""
    model: Any = bundle.model
    ids = torch.tensor([features.input_ids], device=model.device)
    inputs = {fast_paths.input_name(model): ids, "attention_mask": torch.ones_like(ids), **fast_paths.options(model)}
    if bundle.family == "encoder-decoder" and bundle.head == "lm":
        labels = torch.tensor([features.labels], device=model.device)
        inputs["decoder_input_ids"] = decoder_input_ids(model, labels)
    logits: Tensor = model(**inputs).logits[0].float().cpu()
    return logits


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """Return at most ``most`` rows at equal distances."""
    count = min(most, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]
