"""The range test (Smith 2017, "Cyclical Learning Rates", section 3.3): the loss while the rate grows at every step.

:func:`sweep` trains; :func:`read` is pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.config import Config
from fulltune.errors import NonFiniteError
from fulltune.models.bundle import Bundle
from fulltune.models.fast_kernels import fast_kernels
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.tasks.base import Features
from fulltune.training.arguments import training_arguments
from fulltune.training.batches.collate import Collator, FeatureDataset
from fulltune.training.batches.packing import packs
from fulltune.training.device import training_device, unpads
from fulltune.training.guards.divergence import CEILING, LEAST
from fulltune.training.trainer import Trainer

#: Weight of the past in the smoothed loss (an exponential mean without the bias of its start: Kingma & Ba 2015,
#: section 3).
SMOOTHING = 0.85

#: Fraction of the noise of independent losses that smoothing leaves: √((1 − β) / (1 + β)).
_LEFT = math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))

#: Smallest fall that counts, as a fraction of the loss.
FLAT = 0.01

#: Number of points at the end of the sweep over which its slope is taken.
EDGE = 3

#: Deviations of the smoothed loss that noise alone causes: the minimum of a hundred points is about three below.
_BY_CHANCE = 5


@dataclass(frozen=True)
class Reading:
    """The result of a range test.

    Attributes:
        candidates: Rates to try, ascending; empty without a clear result.
        reason: The reason in a sentence.
    """

    candidates: tuple[float, ...]
    reason: str


def rates(low: float, high: float, steps: int) -> list[float]:
    """Return rates from ``low`` to ``high`` in geometric progression."""
    return [low * (high / low) ** (index / (steps - 1)) for index in range(steps)]


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the exponential mean at each loss."""
    average, means = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        means.append(average / (1 - SMOOTHING**count))
    return means


def read(points: Sequence[tuple[float, float]], *, is_whole: bool) -> Reading:
    """Return candidates between the steepest fall of the loss and a tenth of the rate of its minimum.

    Args:
        points: Rate and loss, by ascending rate; losses are finite.
        is_whole: True if the sweep reached its highest rate without diverging.
    """
    if len(points) < 4 * EDGE:
        return Reading((), f"no clear answer: training broke after {len(points)} steps of the sweep")
    losses = [loss for _, loss in points]
    curve, head = smoothed(losses), max(2 * EDGE, len(losses) // 8)
    start, lowest = mean(losses[:head]), min(range(head, len(curve)), key=curve.__getitem__)
    fall = start - curve[lowest]
    noise = 1.4826 * median(abs(loss - at) for loss, at in zip(losses, curve, strict=True)) * _LEFT
    span = f"between {points[0][0]:.2g} and {points[-1][0]:.2g}"
    if fall < FLAT * max(abs(start), LEAST):
        return Reading((), f"no clear answer: the loss is flat, no rate {span} made it fall by even {FLAT:.0%}")
    if fall < _BY_CHANCE * noise:
        by_chance = _BY_CHANCE * noise
        return Reading(
            (), f"no clear answer: the loss fell by {fall:.3g}, and noise alone can make it fall by {by_chance:.3g}"
        )
    if is_whole and lowest >= len(points) - EDGE:
        return Reading(
            (), f"no clear answer: the loss still fell at {points[-1][0]:.2g}, the highest rate of the sweep"
        )
    steepest = min(range(head, lowest + 1), key=lambda index: curve[index] - curve[index - EDGE])
    candidates = _spread(points[steepest][0], points[lowest][0] / 10)
    return Reading(
        candidates, f"the loss fell fastest near {points[steepest][0]:.2g} and was lowest at {points[lowest][0]:.2g}"
    )


def _spread(one: float, other: float) -> tuple[float, ...]:
    """Return three rates with two digits: both and their mean, or three around the mean if both are close."""
    low, high = sorted((one, other))
    middle = math.sqrt(low * high)
    chosen = (low, middle, high) if high / low > 4 else (middle / 3, middle, middle * 3)
    return tuple(float(f"{rate:.1e}") for rate in chosen)


def sweep(
    bundle: Bundle,
    features: Sequence[Features],
    config: Config,
    wanted: Sequence[float],
    *,
    output_dir: Path,
    class_weights: Sequence[float] | None = None,
    on_step: Callable[[float, float], object] = lambda rate, loss: None,
) -> tuple[list[tuple[float, float]], bool]:
    """Train the model in place, one step per rate.

    Args:
        bundle: The model, ready for training; its weights are changed.
        features: Training sequences, drawn at random.
        config: The config, whose loss, batch, optimizer and regularization are used.
        wanted: Rates, ascending.
        output_dir: Not written to.
        class_weights: As in :func:`~fulltune.training.fit.fit`.
        on_step: Called with each rate and the loss that it led to.

    Returns:
        Rates and losses, and whether all rates were tried: the sweep ends when the smoothed loss is
        :data:`~fulltune.training.guards.divergence.CEILING` times its minimum, or not finite.
    """
    args = _arguments(config, output_dir, len(features), len(wanted))
    seen = _Seen(wanted, on_step)
    trainer = Trainer(
        model=bundle.model,
        args=args,
        data_collator=Collator(int(bundle.tokenizer.pad_token_id or 0), packed=packs(bundle.model, config)),
        train_dataset=FeatureDataset(features),
        class_weights=class_weights,
        r_drop=config.regularize.r_drop,
        layer_decay=config.regularize.layer_decay,
        batch_tokens=config.speed.batch_tokens,
        unpad=unpads(config, training_device(config.trainer)),
        callbacks=[seen],
    )
    trainer.remove_callback(PrinterCallback)
    optimizer = trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(optimizer, lambda step: wanted[min(step, len(wanted) - 1)] / args.learning_rate)
    is_finite = True
    try:
        with pinned_kernels(config.speed.kernels), fast_kernels(bundle.model):
            trainer.train()
    except NonFiniteError:
        is_finite = False
    bundle.model.zero_grad(set_to_none=True)
    return seen.points, is_finite and seen.is_whole


def _arguments(config: Config, output_dir: Path, rows: int, steps: int) -> TrainingArguments:
    args = training_arguments(config, output_dir, rows)
    changed: dict[str, Any] = {
        "max_steps": steps + 1,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "train_sampling_strategy": "random",
    }
    for name, value in changed.items():
        setattr(args, name, value)
    return args


class _Seen(TrainerCallback):
    """Pair each rate with the loss of the next step, which is the first that it influenced."""

    def __init__(self, wanted: Sequence[float], on_step: Callable[[float, float], object]) -> None:
        self.wanted, self.on_step = wanted, on_step
        self.points: list[tuple[float, float]] = []
        self.is_whole = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        if "loss" not in (logs or {}) or state.global_step < 2:
            return control
        point = self.wanted[state.global_step - 2], float((logs or {})["loss"])
        self.points.append(point)
        self.on_step(*point)
        curve = smoothed([loss for _, loss in self.points])
        if curve[-1] > min(curve) + (CEILING - 1) * max(abs(min(curve)), LEAST):
            self.is_whole = False
            control.should_training_stop = True
        return control
