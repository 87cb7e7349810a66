"""A learning rate that is too high: losses that shoot up and stay there, and numbers that are not finite.

    guard = DivergenceGuard()
    fulltune.Trainer(..., callbacks=[guard]).train()      # goes back to the last good checkpoint, with a lower rate
    transformers.Trainer(..., callbacks=[guard]).train()  # stops with the weights of the last good step

A spike that recovers is no divergence: only ``patience`` of them in a row are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fulltune.errors import DivergenceError, NonFiniteError, TrainingStopped
from fulltune.records.run import GuardEvent

#: Losses before the window is believed; until then only :data:`CEILING` counts.
HISTORY = 10

#: A loss this many times that of the start is a spike, whatever the window has got used to (fastai's range test takes
#: the same factor for "diverged").
CEILING = 4.0

#: Losses that hardly vary have a deviation near 0: this share of their level counts at least.
FLOOR = 0.05

#: Half of the recent losses above the base's own evaluation loss by this share of it: training has made it worse. Above
#: it by the lesser share: nothing to go back to.
WORSE, NO_BETTER = 0.5, 0.1

#: Nats. Near 0 a loss can rise by many times itself and say nothing; levels below this count as this.
LEAST = 0.5

Sight = Literal["good", "spike", "diverged"]


class SpikeDetector:
    """Tells a loss that is out of line from the losses before it.

    A loss is a spike above ``median + threshold · MAD`` of the last good losses (MAD: the median absolute deviation,
    which outliers do not move; Hampel 1974), or above :data:`CEILING` times the loss of the start. Neither a spike nor
    a loss that is not finite enters the window.

    Where the loss of the base is known (:meth:`anchor`), a window whose median lies above it by half is a divergence
    too: losses that are bad from the first steps on never look out of line.

    Args:
        window: Good losses that are remembered.
        threshold: Deviations above the median that make a spike.
        patience: Spikes in a row that make a divergence.

    Attributes:
        losses: The window.
        start: Loss of the start; NaN before the first one.
        is_anchored: It is that of an evaluation, or higher.
        spikes: Spikes in a row so far.
    """

    def __init__(self, window: int = 50, threshold: float = 10.0, patience: int = 5) -> None:
        self.threshold, self.patience = threshold, patience
        self.losses: deque[float] = deque(maxlen=window)
        self.start, self.is_anchored, self.spikes = math.nan, False, 0

    def anchor(self, loss: float) -> None:
        """The evaluation loss before training; the first training loss counts instead where it is higher."""
        if math.isfinite(loss):
            self.is_anchored = True
            self._begin(loss)

    def _begin(self, loss: float) -> None:
        if not self.start >= loss:
            self.start = loss

    def middle(self) -> float:
        """Median of the window; before there is one, the loss of the start."""
        return median(self.losses) if self.losses else self.start

    def limit(self) -> float:
        """What lies above it is a spike; infinite before the first loss."""
        if math.isnan(self.start):
            return math.inf
        ceiling = self.start + (CEILING - 1) * max(abs(self.start), LEAST)
        if not self.has_history:
            return ceiling
        middle = self.middle()
        spread = median(abs(loss - middle) for loss in self.losses)
        level = max(abs(middle), abs(self.start), LEAST)
        return min(ceiling, middle + self.threshold * max(spread, FLOOR * level))

    @property
    def has_history(self) -> bool:
        """The window can be believed."""
        return len(self.losses) >= min(HISTORY, self.losses.maxlen or HISTORY)

    def above_start(self, share: float) -> float:
        """So much above the loss of the start; infinite where that of the base is not known."""
        return self.start + share * max(abs(self.start), LEAST) if self.is_anchored else math.inf

    def see(self, loss: float) -> Sight:
        """Judge the loss of the next step."""
        if math.isfinite(loss) and loss <= self.limit():
            if not self.losses:
                self._begin(loss)
            self.losses.append(loss)
            self.spikes = 0
            return "diverged" if self.has_history and self.middle() > self.above_start(WORSE) else "good"
        self.spikes += 1
        return "diverged" if self.spikes >= self.patience else "spike"

    def state(self) -> dict[str, Any]:
        """Plain numbers, from which :meth:`restore` goes on."""
        names = ("start", "is_anchored", "spikes")
        return {"losses": list(self.losses)} | {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`; an empty one starts anew."""
        self.losses.clear()
        self.losses.extend(state.get("losses", ()))
        self.start, self.spikes = float(state.get("start", math.nan)), int(state.get("spikes", 0))
        self.is_anchored = bool(state.get("is_anchored", False))


class DivergenceGuard(TrainerCallback, ExportableState):
    """Stops a training that diverges; in :class:`fulltune.Trainer` goes back and tries again with a lower rate.

    In any :class:`transformers.Trainer` the step that is found out is not taken: its gradients are dropped, and
    training ends with the weights of the step before. There the loss of a step is the one that the model itself
    computes, or the logged one where it computes none (label smoothing).

    In :class:`fulltune.Trainer` training goes back to the last good checkpoint, which comes back whole (weights,
    optimizer, schedule, random numbers, place in the data), with the learning rate cut; after ``retries`` times it
    stops with the weights of that checkpoint. Models sharded over processes (FSDP, DeepSpeed) are stopped the first
    time.

    A run that is resumed keeps the window, the cut and the number of roll-backs. Leave
    ``restore_callback_states_from_checkpoint`` off: the guard finds its own state.

    Args:
        window, threshold, patience: As in :class:`SpikeDetector`.
        retries: Roll-backs before training stops.
        cut: Factor on the learning rate at each roll-back.

    Attributes:
        events: What was decided.
        roll_backs: How often training went back.
        rate: What the learning rate is multiplied by now.
    """

    def __init__(
        self, window: int = 50, threshold: float = 10.0, patience: int = 5, retries: int = 2, cut: float = 0.3
    ) -> None:
        self.window, self.threshold, self.patience = window, threshold, patience
        self.retries, self.cut = retries, cut
        self.detector = SpikeDetector(window, threshold, patience)
        self.events: list[GuardEvent] = []
        self.roll_backs, self.rate = 0, 1.0
        #: Set by a trainer that hands over losses itself and takes care of what is not finite: row ids of the step.
        self.rows: Callable[[], Sequence[str]] | None = None
        self._returning = False
        self._loss: float | None = None
        self._suspects: Sequence[str] = ()
        self._hook: Any = None
        self._is_heard = False

    def state(self) -> dict[str, Any]:
        names = ("window", "threshold", "patience", "retries", "cut")
        return {
            "args": {name: getattr(self, name) for name in names},
            "attributes": {
                "seen": self.detector.state(),
                "roll_backs": self.roll_backs,
                "rate": self.rate,
                "events": [event.model_dump() for event in self.events],
            },
        }

    @property
    def is_calm(self) -> bool:
        """No spike is open, and the losses are about those of the start at most: a state to go back to."""
        return self.detector.spikes == 0 and not self.detector.middle() > self.detector.above_start(NO_BETTER)

    def add(self, loss: float) -> None:
        """Part of the step's loss: one of its micro-batches."""
        self._loss = loss + (self._loss or 0.0)

    # ---- Events of training ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks
        # A checkpoint without the guard has no entry, which the library needs to write the next one.
        saved = states.setdefault(type(self).__name__, self.state()).get("attributes", {})
        was_back, self._returning = self._returning, False
        if not (was_back or state.global_step):
            self.events, self.roll_backs, self.rate, saved = [], 0, 1.0, {}
        written = float(saved.get("rate", 1.0))
        if not was_back:
            self.roll_backs, self.rate = int(saved.get("roll_backs", 0)), written
            self.events = [GuardEvent.model_validate(event) for event in saved.get("events", ())]
        self.detector.restore(saved.get("seen", {}))
        self._loss, self._suspects = None, ()
        scale_learning_rate(kwargs["optimizer"], kwargs["lr_scheduler"], self.rate / written)
        self._listen(kwargs["model"])

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
        loss, self._loss = self._loss, None
        if self.rows is None and getattr(kwargs["optimizer"], "scaler", None) is None:
            found = self._not_finite(state.global_step + 1, _everywhere(loss, args), kwargs["model"])
            if found is not None:
                return self._give_up(found, state, control, kwargs["model"])
        if loss is None:
            return control
        loss = loss if self.rows is not None else _everywhere(loss, args)
        return self._judge(loss, state.global_step + 1, state, control, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.rows is None and not weight_norms(kwargs["model"]).isfinite().all():
            self._tell("stop", state.global_step, f"The weights are not finite after step {state.global_step}.")
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
        if self.rows is None and not self._is_heard and "loss" in (logs or {}):
            return self._judge(float((logs or {})["loss"]), state.global_step, state, control, kwargs["model"])
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._hush()

    # ---- What a trainer that can go back asks for ----

    def go_back(self, found: TrainingStopped, step: int, reached: int) -> None:
        """Training returns to the checkpoint of ``step``: count it, cut the rate, and say so."""
        self.roll_backs += 1
        self.rate *= self.cut
        self._returning = True
        self._tell(
            "roll back",
            reached,
            f"{_sentence(found)}; training went back to step {step}, and the learning rate is {self.rate:.3g} of "
            f"what the config says (roll-back {self.roll_backs} of {self.retries}).",
        )

    def stop_at(self, found: TrainingStopped, step: int, reached: int) -> TrainingStopped:
        """Training has gone back often enough: say so, and give the error to raise."""
        again = f", after {self.roll_backs} roll-back{'s' * (self.roll_backs != 1)}" if self.roll_backs else ""
        self._tell("stop", reached, f"{_sentence(found)}{again}; training stopped with the weights of step {step}.")
        rate = f", with the learning rate at {self.rate:.3g} of what was asked for" if self.roll_backs else ""
        return TrainingStopped(
            f"{found.problems[0].found}{again}{rate}",
            expected="losses that stay near those before them",
            fix="lower train.learning_rate (`fulltune lr-find` suggests one), raise train.warmup, or look at those "
            f"rows; the weights are those of step {step}, the last good checkpoint",
        )

    # ---- Inside ----

    def _judge(
        self, loss: float, step: int, state: TrainerState, control: TrainerControl, model: nn.Module
    ) -> TrainerControl:
        limit, middle = self.detector.limit(), self.detector.middle()
        sight = self.detector.see(loss)
        if self.detector.spikes == 1:
            self._suspects = self.rows() if self.rows else ()
        if sight != "diverged":
            return control
        if self.detector.spikes:
            found = DivergenceError(step, loss, limit, middle, self.detector.spikes, self._suspects)
        else:
            rows = self.rows() if self.rows else ()
            found = DivergenceError(step, loss, self.detector.above_start(WORSE), self.detector.start, 0, rows)
        return self._give_up(found, state, control, model)

    def _give_up(
        self, found: TrainingStopped, state: TrainerState, control: TrainerControl, model: nn.Module
    ) -> TrainerControl:
        if self.rows is not None:
            raise found
        # Parameters without a gradient are left alone by the optimizer step that follows.
        model.zero_grad(set_to_none=True)
        self._tell("stop", state.global_step, f"{_sentence(found)}; training stopped with the weights before it.")
        control.should_training_stop = True
        return control

    def _not_finite(self, step: int, loss: float | None, model: nn.Module) -> NonFiniteError | None:
        if loss is not None and not math.isfinite(loss):
            return NonFiniteError(step, "loss", loss, ())
        norm = _norm([value.grad for value in model.parameters() if value.grad is not None])
        return None if math.isfinite(norm) else NonFiniteError(step, "gradient norm", norm, ())

    def _listen(self, model: nn.Module) -> None:
        """Hear the losses that the model computes, where no trainer hands them over."""
        self._hush()
        self._is_heard = self.rows is not None
        if self.rows is None:
            self._hook = model.register_forward_hook(self._hear)

    def _hear(self, module: nn.Module, inputs: Any, output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else output[0] if isinstance(output, tuple) else None
        if module.training and isinstance(loss, Tensor) and loss.numel() == 1:
            self._is_heard = True
            self.add(float(loss.detach()))

    def _hush(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _tell(self, verdict: Literal["stop", "roll back"], step: int, message: str) -> None:
        self.events.append(GuardEvent(guard="divergence", step=step, verdict=verdict, message=message))


def scale_learning_rate(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply the rate of a training by ``factor``, now and for the rest of its schedule."""
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
    """Euclidean norm of each parameter, ``(P,)``; not finite where a weight is not (or its square is not)."""
    return torch.stack([value.detach().float().norm().cpu() for value in model.parameters()])


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(tensors)) if tensors else 0.0


def _everywhere(loss: float | None, args: TrainingArguments) -> Any:
    """The mean over all processes, so that they decide alike."""
    if loss is None or args.world_size < 2:
        return loss
    total = torch.tensor(loss, device=args.device)
    torch.distributed.all_reduce(total)
    return float(total) / args.world_size


def _sentence(found: TrainingStopped) -> str:
    text = found.problems[0].found
    return text[0].upper() + text[1:]
