"""Measure real training steps: the memory that they hold and the time that they take.

The steps are those of :func:`~fulltune.training.fit.fit`, so losses, kernels, recomputation and the optimizer are those
of a run. They change the weights of the model, which should be loaded for this alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.config import Config
from fulltune.models.bundle import Bundle, Family
from fulltune.pipeline.planning.footprint import Footprint
from fulltune.pipeline.planning.live_bytes import LiveBytes
from fulltune.records.run import Parameters
from fulltune.tasks.base import Features
from fulltune.training.batches.buckets import computed
from fulltune.training.device import training_device, unpads
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.methods.base import Method

#: Micro-batch sizes that are measured; larger ones are extrapolated. Not 1: libraries take shortcuts there.
FEW, MORE = 2, 3

#: Epochs that are drawn to find which rows are computed together.
EPOCHS = 3

#: Number of batches that are timed, from short rows to long ones, after a warm-up batch.
TIMED = 4

Pace = list[tuple[int, float]]


class _Prepared(Method):
    """A method whose model is already prepared, and whose proof is not needed."""

    name = "prepared"

    def __init__(self, method: Method) -> None:
        self.method, self.trains_all = method, method.trains_all  # type: ignore[misc]

    def prepare(self, bundle: Bundle) -> None:
        """Leave the model as it is."""

    def features(self, bundle: Bundle, features: Sequence[Features]) -> Sequence[Features]:
        return self.method.features(bundle, features)

    def proof(self, bundle: Bundle) -> Parameters:
        return Parameters(total=0, trainable=0, frozen=0, dtype="float32")


class _Watch(TrainerCallback):
    """Measure the first step from its beginning to the optimizer step."""

    def __init__(self) -> None:
        self.live, self.seconds = LiveBytes(), 0.0
        self.events: tuple[int, ...] = ()
        self._started = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.perf_counter()
        self.live.__enter__()  # type: ignore[no-untyped-call]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.live.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.seconds, self.events = time.perf_counter() - self._started, tuple(self.live.events)


class _Clock(TrainerCallback):
    """Record tokens and seconds of each step, and the seconds of the last evaluation."""

    def __init__(self) -> None:
        self.pace: Pace = []
        self.evaluation = self.began = 0.0
        self._seen, self._time = 0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = self._time = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        seen, now = int(state.num_input_tokens_seen), time.perf_counter()
        self.pace.append((seen - self._seen, now - self._time))
        self._seen, self._time = seen, now

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        self.evaluation = float(metrics["eval_runtime"])


@dataclass(frozen=True)
class Probe:
    """The model and the data that steps are measured on.

    Attributes:
        student: The model, prepared by its method; its weights are changed.
        method: The method.
        features: The training sequences.
        class_weights: As in :func:`~fulltune.training.fit.fit`.
        folder: A temporary folder.
    """

    student: Bundle
    method: Method
    features: Sequence[Features]
    class_weights: Sequence[float] | None
    folder: Path


def footprint(probe: Probe, config: Config) -> Footprint:
    """Measure the memory of a step: up to :data:`MORE` rows directly; more rows are extrapolated."""
    family = probe.student.family
    longest = max(probe.features, key=lambda item: tokens(item, family))
    rows, width = widest(config, probe.features, family)
    # Parts of a micro-batch add to existing gradients, as micro-batches do.
    accumulation = 2 if rows < micro_batch(config, width) else min(2, config.train.accumulation)
    timelines, seconds, optimizer = {}, {}, 0
    for count in (rows,) if rows <= MORE else (FEW, MORE):
        watch = _Watch()
        short = {"batch_size": count, "accumulation": accumulation, "max_steps": 1}
        done = _steps(probe, [longest] * (count * accumulation), config, watch, short, {"batch_tokens": None})
        timelines[count], seconds[count] = watch.events, watch.seconds
        optimizer = done.training.optimizer_bytes
    parameters = list(probe.student.model.parameters())
    modules = probe.student.model.modules()
    embeddings = {module.weight for module in modules if isinstance(module, nn.Embedding)}
    return Footprint(
        rows=rows,
        width=width,
        timelines=timelines,
        weights=sum(one.nbytes for one in parameters),
        gradients=sum(one.nbytes for one in parameters if one.requires_grad),
        optimizer=optimizer,
        is_accumulated=accumulation > 1,
        seconds=seconds,
        embeddings=sum(one.nbytes for one in embeddings if one.requires_grad),
    )


def widest(config: Config, features: Sequence[Features], family: Family) -> tuple[int, int]:
    """Return the largest number of rows that are computed together, and the tokens of the longest row.

    If micro-batches are computed in parts: the number of longest rows that have the tokens of the largest part in
    :data:`EPOCHS` epochs like those of training. A decoder may pack them instead.
    """
    longest = max(tokens(item, family) for item in features)
    rows = micro_batch(config, longest)
    may_pack = family == "decoder" and config.speed.packing == "auto"
    if unpads(config, training_device(config.trainer)) and not may_pack:
        lengths = [(tokens(item, family), 0) for item in features]
        parts = [part for epoch in range(EPOCHS) for part in computed(config, lengths, epoch)]
        most = max(len(part) * max(lengths[row][0] for row in part) for part in parts)
        rows = min(rows, -(-most // longest))
    return rows, longest


def micro_batch(config: Config, longest: int) -> int:
    """Return the rows of the micro-batch of a row with this number of tokens."""
    budget = config.speed.batch_tokens
    return config.train.batch_size if budget is None else max(1, budget // longest)


def tokens(item: Features, family: Family) -> int:
    """Return the tokens of a sequence: of its input and, in an encoder-decoder, of its target."""
    target = len(item.labels) if family == "encoder-decoder" and isinstance(item.labels, list) else 0
    return len(item.input_ids) + target


@dataclass(frozen=True)
class Timing:
    """Timed steps.

    Attributes:
        steps: Tokens (without padding) and seconds of each step.
        evaluation: Tokens and seconds of an evaluation of the loss; None if there was none.
        setup: Seconds before the first step.
    """

    steps: Pace
    evaluation: tuple[int, float] | None = None
    setup: float = 0.0


def timing(probe: Probe, config: Config, batch: int, steps: int = TIMED, curve: Sequence[Features] = ()) -> Timing:
    """Time optimizer steps and an evaluation, on rows of all lengths.

    Args:
        probe: The model and the sequences.
        config: The config.
        batch: Rows per optimizer step.
        steps: Number of steps.
        curve: Sequences of the evaluation curve; two batches of them are evaluated.
    """
    ordered, shown = (sorted(rows, key=lambda item: len(item.input_ids)) for rows in (probe.features, curve))
    chosen = [item for part in range(steps) for item in _stretch(ordered, (part + 0.5) / steps, batch)]
    scored = [item for place in (0.25, 0.75) for item in _stretch(shown, place, config.evaluation.batch_size)]
    warm, clock = _stretch(ordered, 0.5, batch), _Clock()
    train = {"epochs": 1, "max_steps": None, "evaluations": min(1, len(scored))}
    started = time.perf_counter()
    _steps(probe, [*warm, *chosen], config, clock, train, curve=scored)
    evaluation = (sum(len(item.input_ids) for item in scored), clock.evaluation) if scored else None
    return Timing(clock.pace[1:] or clock.pace, evaluation, clock.began - started)


def _stretch(ordered: Sequence[Features], place: float, count: int) -> list[Features]:
    """Return ``count`` adjacent sequences around a place between 0 and 1, or fewer if there are no more."""
    start = round(place * len(ordered) - count / 2)
    start = max(0, min(start, len(ordered) - count))
    return list(ordered[start : start + count])


def _steps(
    probe: Probe,
    features: Sequence[Features],
    config: Config,
    callback: TrainerCallback,
    train: dict[str, Any],
    speed: Mapping[str, Any] = MappingProxyType({}),
    curve: Sequence[Features] | None = None,
) -> TrainingResult:
    """Train briefly without guards, checkpoints and trackers."""
    plain = config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "speed": config.speed.model_copy(update=speed),
            "guards": config.guards.model_copy(update={"divergence": None}),
            "checkpoints": None,
            "trainer": config.trainer | {"save_strategy": "no", "report_to": "none"},
        }
    )
    return fit(
        probe.student,
        _Prepared(probe.method),
        features,
        curve,
        plain,
        output_dir=probe.folder,
        class_weights=probe.class_weights,
        callbacks=[callback],
    )
