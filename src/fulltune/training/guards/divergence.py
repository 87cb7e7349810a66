"""Detect divergence: losses that rise sharply and stay high, and numbers that are not finite.

    guard = DivergenceGuard()
    fulltune.Trainer(..., callbacks=[guard]).train()      # rolls back to the last good checkpoint, with a lower rate
    transformers.Trainer(..., callbacks=[guard]).train()  # stops with the weights of the last good step

A single spike that recovers is not a divergence; ``patience`` consecutive spikes are.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from fulltune.errors import DivergenceError, NonFiniteError, TrainingStopped
from fulltune.training.guards.base import Guard, GuardDecision, GuardName

#: Number of losses from which on the window is used; before that, only :data:`CEILING` applies.
HISTORY = 10

#: A loss above this multiple of the initial loss is a spike, whatever the window holds. fastai's range test uses the
#: same factor.
CEILING = 4.0

#: Lower bound of the deviation, as a fraction of the level of the losses: losses that hardly vary have one near 0.
FLOOR = 0.05

#: Training has diverged if the median of the window exceeds the evaluation loss of the base by this fraction.
WORSE = 0.5

#: A state is not worth a checkpoint to roll back to if the median exceeds that loss by this fraction.
NO_BETTER = 0.1

#: Batches are compared if neither is wider than the other by more than this factor, and if there are at least five.
SIMILAR, _LIKE = 2.0, 5

#: Lower bound of the level of a loss, in nats: near 0, a loss may grow by a large factor without any meaning.
LEAST = 0.5

Sight = Literal["good", "spike", "diverged"]


class SpikeDetector:
    """Detect losses that are far above the losses before them.

    A loss is a spike if it exceeds ``median + threshold · MAD`` of the window, or :data:`CEILING` times the initial
    loss. MAD is the median absolute deviation, which is robust to outliers (Hampel 1974). Spikes and losses that are
    not finite do not enter the window.

    Batches that are grouped by length differ in their loss by their length, and several short ones may follow each
    other. A loss is therefore compared with those of batches of similar width; if the window holds few of these, only
    :data:`CEILING` applies.

    If the loss of the base is known (:meth:`anchor`), a window whose median exceeds it by half is a divergence too.
    Losses that are high from the first steps on are never far above those before them.

    Args:
        window: Number of good losses in the window.
        threshold: Deviations above the median from which on a loss is a spike.
        patience: Consecutive spikes that are a divergence.

    Attributes:
        losses: The window.
        widths: Widths of the batches of these losses, in tokens; 0 if unknown.
        start: Initial loss; NaN before the first one.
        is_anchored: ``start`` is at least the evaluation loss of the base.
        spikes: Consecutive spikes so far.
    """

    def __init__(self, window: int = 50, threshold: float = 10.0, patience: int = 5) -> None:
        self.threshold = threshold
        self.patience = patience
        self.losses: deque[float] = deque(maxlen=window)
        self.widths: deque[float] = deque(maxlen=window)
        self.start = math.nan
        self.is_anchored = False
        self.spikes = 0

    def anchor(self, loss: float) -> None:
        """Set the initial loss to the evaluation loss before training; a higher first training loss replaces it."""
        if math.isfinite(loss):
            self.is_anchored = True
            self._begin(loss)

    def _begin(self, loss: float) -> None:
        if not self.start >= loss:
            self.start = loss

    def middle(self, width: float = 0.0) -> float:
        """Return the median of the window, or the initial loss if the window is empty.

        Args:
            width: Width of the batches that it is for; by default each loss counts by its width, as in the evaluation
                loss, which is a mean of tokens.
        """
        if not self.losses:
            return self.start
        return median(self._like(width) or self.losses) if width else weighted_median(self.losses, self.widths)

    def limit(self, width: float = 0.0) -> float:
        """Return the loss above which the next one is a spike; infinity before the first loss.

        Args:
            width: Width of the next batch; 0 if unknown.
        """
        if math.isnan(self.start):
            return math.inf
        ceiling = self.start + (CEILING - 1) * max(abs(self.start), LEAST)
        losses = self._like(width)
        if not self.has_history or len(losses) < min(_LIKE, len(self.losses)):
            return ceiling
        middle = median(losses)
        spread = median(abs(loss - middle) for loss in losses)
        level = max(abs(middle), abs(self.start), LEAST)
        return min(ceiling, middle + self.threshold * max(spread, FLOOR * level))

    def _like(self, width: float) -> list[float]:
        """Return the losses of the window whose batches have a similar width; all of them if it is unknown."""
        known = zip(self.losses, self.widths, strict=True)
        return [loss for loss, other in known if not width or not other or 1 / SIMILAR <= other / width <= SIMILAR]

    @property
    def has_history(self) -> bool:
        """True if the window holds enough losses."""
        return len(self.losses) >= min(HISTORY, self.losses.maxlen or HISTORY)

    def above_start(self, fraction: float) -> float:
        """Return the initial loss, raised by a fraction of it; infinity if the loss of the base is not known."""
        return self.start + fraction * max(abs(self.start), LEAST) if self.is_anchored else math.inf

    def see(self, loss: float, width: float = 0.0) -> Sight:
        """Judge the loss of the next step, whose batch has a width in tokens (0 if unknown)."""
        if math.isfinite(loss) and loss <= self.limit(width):
            if not self.losses:
                self._begin(loss)
            self.losses.append(loss)
            self.widths.append(width)
            self.spikes = 0
            return "diverged" if self.has_history and self.middle() > self.above_start(WORSE) else "good"
        self.spikes += 1
        return "diverged" if self.spikes >= self.patience else "spike"

    def state(self) -> dict[str, Any]:
        """Return plain numbers for :meth:`restore`."""
        names = ("start", "is_anchored", "spikes")
        return {"losses": list(self.losses), "widths": list(self.widths)} | {
            name: getattr(self, name) for name in names
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state`; an empty one resets the detector."""
        self.losses.clear()
        self.losses.extend(state.get("losses", ()))
        self.widths.clear()
        self.widths.extend(state.get("widths", [0.0] * len(self.losses)))
        self.start = float(state.get("start", math.nan))
        self.spikes = int(state.get("spikes", 0))
        self.is_anchored = bool(state.get("is_anchored", False))


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the value up to which half of the weights lie; the plain median if no weight is above 0."""
    total = sum(weights)
    if not total > 0:
        return median(values)
    ordered = sorted(zip(values, weights, strict=True))
    below = itertools.accumulate(weight for _, weight in ordered)
    return next(value for (value, _), mass in zip(ordered, below, strict=True) if 2 * mass >= total)


class DivergenceGuard(Guard):
    """Stop a training that diverges; in :class:`fulltune.Trainer`, roll it back and retry with a lower learning rate.

    In any :class:`transformers.Trainer`, the step in which divergence is detected is not taken. Its gradients are
    dropped, and training ends with the weights of the step before. The loss of a step is the one that the model
    computes, or the logged one if the model computes none (label smoothing).

    In :class:`fulltune.Trainer`, training returns to the last good checkpoint with all of its state (weights,
    optimizer, schedule, random numbers, position in the data), and the learning rate is reduced. After ``retries``
    roll-backs it stops with the weights of that checkpoint. Models that are sharded over processes (FSDP, DeepSpeed)
    are stopped the first time.

    A resumed run keeps the window, the rate and the number of roll-backs. Leave
    ``restore_callback_states_from_checkpoint`` off: the guard reads its state itself.

    Args:
        window: As in :class:`SpikeDetector`.
        threshold: As in :class:`SpikeDetector`.
        patience: As in :class:`SpikeDetector`.
        retries: Roll-backs before training stops.
        rate_factor: Factor on the learning rate at each roll-back.

    Attributes:
        events: Decisions of this training.
        roll_backs: Number of roll-backs.
        rate: Current factor on the learning rate.
    """

    name: ClassVar[GuardName] = "divergence"

    def __init__(
        self, window: int = 50, threshold: float = 10.0, patience: int = 5, retries: int = 2, rate_factor: float = 0.3
    ) -> None:
        super().__init__()
        self.window = window
        self.threshold = threshold
        self.patience = patience
        self.retries = retries
        self.rate_factor = rate_factor
        self.detector = SpikeDetector(window, threshold, patience)
        self.roll_backs = 0
        self.rate = 1.0
        self._row_ids: Callable[[], Sequence[str]] | None = None
        self._is_rolling_back = False
        self._loss: float | None = None
        self._widths: list[float] = []
        self._suspects: Sequence[str] = ()
        self._hook: Any = None
        self._receives_losses = False

    def attach(self, row_ids: Callable[[], Sequence[str]]) -> None:
        """Leave losses, non-finite numbers and roll-backs to a trainer that calls :meth:`add` and handles errors.

        Args:
            row_ids: Returns the ids of the rows of the current step.
        """
        self._row_ids = row_ids

    def detach(self) -> None:
        """Undo :meth:`attach`: the guard stops a training by itself again."""
        self._row_ids = None

    def state(self) -> dict[str, Any]:
        """Return the arguments and plain numbers for ``trainer_state.json``."""
        names = ("window", "threshold", "patience", "retries", "rate_factor")
        return {
            "args": {name: getattr(self, name) for name in names},
            "attributes": {
                "seen": self.detector.state(),
                "roll_backs": self.roll_backs,
                "rate": self.rate,
                "events": [event.state() for event in self.events],
            },
        }

    @property
    def is_calm(self) -> bool:
        """True if the current state is worth a checkpoint: no open spike, and losses not above the initial one."""
        return self.detector.spikes == 0 and not self.detector.middle() > self.detector.above_start(NO_BETTER)

    def add(self, loss: float, width: float = 0.0) -> None:
        """Add the loss of a micro-batch, and its width in tokens, to those of the step."""
        self._loss = loss + (self._loss or 0.0)
        self._widths.append(width)

    # ---- Events of training ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks
        # A checkpoint written without the guard has no entry; the library needs one to write the next checkpoint.
        saved = states.setdefault(type(self).__name__, self.state()).get("attributes", {})
        is_rolled_back = self._is_rolling_back
        self._is_rolling_back = False
        if not (is_rolled_back or state.global_step):
            saved = {}
        written = float(saved.get("rate", 1.0))
        if not is_rolled_back:
            self.roll_backs = int(saved.get("roll_backs", 0))
            self.rate = written
            self.events = [GuardDecision(**event) for event in saved.get("events", ())]
        self.detector.restore(saved.get("seen", {}))
        self._loss, self._widths = None, []
        self._suspects = ()
        # The schedule in the checkpoint already has the factor that was in effect when it was written.
        scale_learning_rate(kwargs["optimizer"], kwargs["lr_scheduler"], self.rate / written)
        self._add_hook(kwargs["model"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step == 0:
            self.detector.anchor(float((metrics or {}).get("eval_loss", math.nan)))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        loss, width = self._loss, sum(self._widths) / max(1, len(self._widths))
        self._loss, self._widths = None, []
        # A loss scaler (FP16) skips steps with infinite gradients on purpose.
        if self._row_ids is None and getattr(kwargs["optimizer"], "scaler", None) is None:
            error = self._not_finite(state.global_step + 1, _mean_over_processes(loss, args), kwargs["model"])
            if error is not None:
                return self._stop(error, state, control, kwargs["model"])
        if loss is None:
            return control
        if self._row_ids is None:
            loss, width = _mean_over_processes(loss, args), _mean_over_processes(width, args)
        return self._judge(loss, width, state.global_step + 1, state, control, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._row_ids is None and not weight_norms(kwargs["model"]).isfinite().all():
            self.decide("stop", state.global_step, f"The weights are not finite after step {state.global_step}.")
            control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        # Without losses from the model, those of the log are used.
        if self._row_ids is None and not self._receives_losses and "loss" in (logs or {}):
            return self._judge(float((logs or {})["loss"]), 0.0, state.global_step, state, control, kwargs["model"])
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._remove_hook()

    # ---- Decisions of a trainer that can roll back ----

    def roll_back(
        self, error: NonFiniteError | DivergenceError, step: int, *, restarts: bool = True
    ) -> TrainingStopped | None:
        """Reduce the learning rate and record that training returns to a step, or that it stops.

        Args:
            error: The reason.
            step: The last good step, whose weights are kept.
            restarts: Training is begun again; False if it continues with the next batch.

        Returns:
            The error to raise if no roll-back is left; else None.
        """
        if self.roll_backs >= self.retries:
            return self._out_of_retries(error, step)
        self.roll_backs += 1
        self.rate *= self.rate_factor
        self._is_rolling_back = restarts
        self.decide(
            "roll back",
            error.step,
            f"{_sentence(error)}; training went back to step {step}, and the learning rate is {self.rate:.3g} of "
            f"the configured one (roll-back {self.roll_backs} of {self.retries}).",
        )
        return None

    def _out_of_retries(self, error: NonFiniteError | DivergenceError, step: int) -> TrainingStopped:
        again = f", after {self.roll_backs} roll-back{'s' * (self.roll_backs != 1)}" if self.roll_backs else ""
        message = f"{_sentence(error)}{again}; training stopped with the weights of step {step}."
        self.decide("stop", error.step, message)
        rate = f", with the learning rate at {self.rate:.3g} of the configured one" if self.roll_backs else ""
        return TrainingStopped(
            f"{error.problems[0].found}{again}{rate}",
            expected="losses that stay close to those before them",
            fix="lower train.learning_rate (`fulltune lr-find` suggests one), raise train.warmup, or inspect those "
            f"rows; the weights are those of step {step}, the last good checkpoint",
        )

    # ---- Detection ----

    def _judge(
        self, loss: float, width: float, step: int, state: TrainerState, control: TrainerControl, model: nn.Module
    ) -> TrainerControl:
        limit = self.detector.limit(width)
        middle = self.detector.middle(width)
        sight = self.detector.see(loss, width)
        spikes = self.detector.spikes
        if spikes == 1:
            # The rows of the first spike are the suspects; those of the steps after it may be fine.
            self._suspects = self._current_rows()
        if sight != "diverged":
            return control
        if spikes:
            error = DivergenceError(step, loss=loss, limit=limit, usual=middle, spikes=spikes, row_ids=self._suspects)
        else:
            error = DivergenceError(
                step,
                loss=loss,
                limit=self.detector.above_start(WORSE),
                usual=self.detector.start,
                spikes=0,
                row_ids=self._current_rows(),
            )
        return self._stop(error, state, control, model)

    def _current_rows(self) -> Sequence[str]:
        return self._row_ids() if self._row_ids else ()

    def _stop(
        self,
        error: NonFiniteError | DivergenceError,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
    ) -> TrainerControl:
        if self._row_ids is not None:
            raise error
        # The optimizer step that follows skips parameters without a gradient.
        model.zero_grad(set_to_none=True)
        self.decide("stop", state.global_step, f"{_sentence(error)}; training stopped with the weights before it.")
        control.should_training_stop = True
        return control

    def _not_finite(self, step: int, loss: float | None, model: nn.Module) -> NonFiniteError | None:
        if loss is not None and not math.isfinite(loss):
            return NonFiniteError(step, "loss", loss, ())
        norm = _norm([value.grad for value in model.parameters() if value.grad is not None])
        return None if math.isfinite(norm) else NonFiniteError(step, "gradient norm", norm, ())

    def _add_hook(self, model: nn.Module) -> None:
        """Receive the losses that the model computes, unless a trainer passes them."""
        self._remove_hook()
        self._receives_losses = self._row_ids is not None
        if self._row_ids is None:
            self._hook = model.register_forward_hook(self._receive, with_kwargs=True)

    def _receive(self, module: nn.Module, inputs: Any, options: Mapping[str, Any], output: Any) -> None:
        loss = _loss_in(output)
        if module.training and isinstance(loss, Tensor) and loss.numel() == 1:
            self._receives_losses = True
            self.add(float(loss.detach()), batch_width(options))

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def batch_width(batch: Mapping[str, Any]) -> float:
    """Return the width of a batch in tokens: of its labels if there is one per token, else of its inputs; 0 if unknown.

    Padding counts; batches that are grouped by length have little.
    """
    tables = [value for value in (batch.get("labels"), batch.get("input_ids")) if isinstance(value, Tensor)]
    # Labels that are real numbers are those of several classes.
    return float(next((ids.shape[1] for ids in tables if ids.ndim == 2 and not ids.is_floating_point()), 0))


def guard_among(callbacks: Sequence[Any]) -> DivergenceGuard | None:
    """Return the guard against divergence among the callbacks of a trainer, if there is one."""
    return next((one for one in callbacks if isinstance(one, DivergenceGuard)), None)


def scale_learning_rate(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply the learning rate by ``factor``, now and for the rest of the schedule."""
    if factor == 1:
        return
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] = group[name] * factor
    for name in ("base_lrs", "_last_lr"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])


def weight_norms(model: nn.Module) -> Tensor:
    """Return the Euclidean norm of each parameter, ``(P,)``; not finite if a weight, or its square, is not finite."""
    return torch.stack([value.detach().float().norm().cpu() for value in model.parameters()])


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(tensors)) if tensors else 0.0


def _loss_in(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get("loss")
    return output[0] if isinstance(output, tuple) else None


def _mean_over_processes(loss: float | None, args: TrainingArguments) -> Any:
    """Return the mean loss over all processes, so that all of them take the same decision."""
    if loss is None or args.world_size < 2:
        return loss
    total = torch.tensor(loss, device=args.device)
    torch.distributed.all_reduce(total)
    return float(total) / args.world_size


def _sentence(error: TrainingStopped) -> str:
    text = error.problems[0].found
    return text[0].upper() + text[1:]
