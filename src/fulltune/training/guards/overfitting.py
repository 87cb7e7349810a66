"""Prevent overfitting: keep the weights of the best evaluation, and stop training when it no longer improves.

Step 0, which is the base or the base with a new head, is a candidate: if no later step is better, training restores
it.

    guard = OverfittingGuard("accuracy", patience=3)      # a metric of the trainer's evaluations
    transformers.Trainer(..., callbacks=[guard]).train()  # the model then has the weights of guard.best_step
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from fulltune.errors import ConfigError, StoreError, did_you_mean
from fulltune.models.bundle import trained_state
from fulltune.training.guards.base import Guard, GuardName

#: Returns metrics of the current model by name.
Scorer = Callable[[], Mapping[str, float]]

#: Values in the output of an evaluation that do not measure quality.
_SPEED = frozenset({"epoch", "runtime", "samples_per_second", "steps_per_second"})


class BestState:
    """Keep the weights of one step in a safetensors file.

    Of a model with frozen parameters, only the trainable ones and the buffers are written. Tied tensors are written
    once. Models that are sharded over processes are not supported.

    The weights are on disk, not in memory: full fine-tuning has no memory to spare, and a resumed run needs the file.

    Args:
        path: The file; it is replaced atomically.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, model: nn.Module, step: int, value: float) -> None:
        """Replace the file by the weights of the model.

        Args:
            model: Unwrapped.
            step: Optimizer step of the weights.
            value: Value of the metric at that step.

        Raises:
            StoreError: The file cannot be written (for example, the disk is full).
        """
        unfinished = self.path.with_name(f".{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"step": str(step), "value": repr(value), "sha256": _sha256(model)}
            if _has_frozen(model):
                save_file(trained_state(model), unfinished, metadata=metadata)
            else:
                save_model(model, str(unfinished), metadata=metadata)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                unfinished.unlink()
            raise StoreError(
                f"the best weights cannot be written ({error})",
                expected="disk space for one copy of the model",
                fix="free some space, or set guards.overfitting to null",
                where=str(self.path),
            ) from error

    def kept(self) -> tuple[int, float] | None:
        """Return the step and the value of the weights in the file; None if there is no complete file."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if not {"step", "value"} <= metadata.keys():
            return None
        return int(metadata["step"]), float(metadata["value"])

    def restore(self, model: nn.Module) -> None:
        """Load the weights into the model, bit for bit.

        Raises:
            StoreError: The file is corrupt.
        """
        written = ""
        with suppress(SafetensorError):
            if _has_frozen(model):
                model.load_state_dict(load_file(self.path), strict=False)
            else:
                load_model(model, str(self.path))
            with safe_open(self.path, framework="pt") as file:
                written = (file.metadata() or {}).get("sha256", "")
        if written != _sha256(model):
            raise StoreError(
                "the file of the best weights is corrupt",
                fix="check the disk and restart the run",
                where=str(self.path),
            )

    def drop(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _sha256(model: nn.Module) -> str:
    """Return one hash of the names and values of the tensors that training changes."""
    digest = hashlib.sha256()
    for name, value in trained_state(model).items():
        octets: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(name.encode())
        digest.update(octets)
    return digest.hexdigest()


def _has_frozen(model: nn.Module) -> bool:
    return any(not value.requires_grad for value in model.parameters())


class OverfittingGuard(Guard):
    """Keep the weights of the best evaluation, stop after ``patience`` evaluations without improvement, restore them.

    The guard works in any :class:`transformers.Trainer` with an evaluation set, which it evaluates before the first
    step too. The metric must come from validation rows: rows that choose the step give a biased estimate of quality.

    A resumed run keeps the best weights (``best.safetensors`` in the output folder) and the patience. Leave
    ``restore_callback_states_from_checkpoint`` off: the guard reads its state itself.

    Args:
        metric: A metric of an evaluation, with or without the prefix ``eval_``.
        patience: Consecutive evaluations without improvement that end training; 0 disables this.
        min_delta: Smallest change that is an improvement.
        higher_is_better: Direction of the metric. By default a name that ends in ``loss`` is better low, and any other
            follows ``TrainingArguments.greater_is_better``, or is better high if that is not set.
        scorer: Returns further metrics; called after each evaluation.

    Attributes:
        history: ``(step, value)`` of every evaluation so far.
        best: Step and value of the kept weights; None before the first evaluation.
        events: Decisions of this training.
        seconds: Wall time spent in ``scorer`` and in writing weights.

    Raises (in training, before the first step):
        ConfigError: No evaluation returns the metric; the message lists those that it returns.
    """

    name: ClassVar[GuardName] = "overfitting"

    def __init__(
        self,
        metric: str = "loss",
        patience: int = 3,
        min_delta: float = 0.0,
        higher_is_better: bool | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.patience = patience
        self.min_delta = min_delta
        self.higher_is_better = higher_is_better
        self.scorer = scorer
        self.history: list[tuple[int, float]] = []
        self.best: tuple[int, float] | None = None
        self._unsharded: nn.Module | None = None
        self._keeps_file = False
        self._names: set[str] = set()
        self._state: BestState | None = None

    def attach(self, model: nn.Module, *, keeps_file: bool) -> None:
        """Keep and restore the weights of this model, of which an engine may train a sharded copy.

        Args:
            model: Unwrapped; it has the trained weights at every evaluation.
            keeps_file: Leave the file of the best weights at the end, for a run that is resumed from before it.
        """
        self._unsharded = model
        self._keeps_file = keeps_file

    @property
    def best_step(self) -> int | None:
        """Step of the kept weights."""
        return None if self.best is None else self.best[0]

    def state(self) -> dict[str, Any]:
        """Return the arguments and plain numbers for ``trainer_state.json``; the weights are in a separate file."""
        return {
            "args": {
                "metric": self.metric,
                "patience": self.patience,
                "min_delta": self.min_delta,
                "higher_is_better": self.higher_is_better,
            },
            "attributes": {"history": [list(point) for point in self.history]},
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        args.eval_on_start = True
        if self.higher_is_better is None:
            asked = args.greater_is_better
            self.higher_is_better = not self.metric.endswith("loss") and (asked is None or asked)
        self._state = BestState(Path(str(args.output_dir)) / "best.safetensors")
        self.events = []
        self.history = []
        self.best = None
        if state.global_step == 0:
            self._state.drop()
        else:
            self._resume(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        is_training = self._state is not None
        if not is_training or (self.history and state.global_step <= self.history[-1][0]):
            return control
        started = time.perf_counter()
        values = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        values |= self.scorer() if self.scorer else {}
        self._names |= values.keys()
        name = self.metric if self.metric in values else self.metric.removeprefix("eval_")
        if name in values:
            model = self._unsharded or kwargs["model"]
            self._see(state.global_step, float(values[name]), model, state.is_world_process_zero)
        self.seconds += time.perf_counter() - started
        if self._is_stuck() and state.global_step < state.max_steps:
            control.should_training_stop = True
            self.decide("stop", state.global_step, self._stop_message(state))
        return control

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.history:
            known = sorted(self._names - _SPEED)
            raise ConfigError(
                f"no evaluation returns {self.metric!r}",
                expected=f"one of {', '.join(known)}" if known else "an evaluation before the first step",
                fix=did_you_mean(self.metric.removeprefix("eval_"), known) or "choose one of these",
                field="guards.overfitting.metric",
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.finish(self._unsharded or kwargs["model"], state.global_step, writes=state.is_world_process_zero)

    def finish(self, model: nn.Module, step: int, *, writes: bool = True) -> None:
        """Restore the best weights, record this, and remove their file.

        The guard calls this at the end of training. Call it after a training that an exception ended. A second call has
        no effect.

        Args:
            model: Gets the best weights.
            step: Step in which training ended.
            writes: This process removes the file.
        """
        if self._state is None:
            return
        if self.best is not None:
            if self.best[0] != step:
                self._state.restore(model)
            self.decide("continue", self.best[0], self._keep_message(step))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # all processes have read the file before it is removed
        if writes and not self._keeps_file:
            self._state.drop()
        self._state = None

    def _resume(self, state: TrainerState) -> None:
        kept = self._state.kept() if self._state else None
        states: Any = state.stateful_callbacks
        saved = states.get(type(self).__name__)
        if kept is None or not isinstance(saved, dict):
            return
        points = saved.get("attributes", {}).get("history", [])
        # After a roll-back the file may hold a later step than the checkpoint; these weights are valid all the same.
        self.history = [(int(step), float(value)) for step, value in points if step <= state.global_step]
        self.best = kept

    def _see(self, step: int, value: float, model: nn.Module, writes: bool) -> None:
        self.history.append((step, value))
        if not math.isnan(value) and (self.best is None or self._gain(value) > self.min_delta):
            self.best = (step, value)
            if writes and self._state is not None:
                self._state.keep(model, step, value)

    def _gain(self, value: float) -> float:
        """Return the improvement over the best value so far."""
        best = self.best[1] if self.best else math.nan
        return value - best if self.higher_is_better else best - value

    def _waited(self) -> int:
        """Return the number of evaluations since the best one."""
        best = -1 if self.best is None else self.best[0]
        return sum(step > best for step, _ in self.history)

    def _is_stuck(self) -> bool:
        return 0 < self.patience <= self._waited()

    def _stop_message(self, state: TrainerState) -> str:
        step, value = self.best or (0, math.nan)
        better = "rise above" if self.higher_is_better else "fall below"
        return (
            f"The validation {self.metric} did not {better} {value:.4g} (step {step}) in {self._waited()} evaluations; "
            f"training stopped at step {state.global_step} of {state.max_steps}."
        )

    def _keep_message(self, last: int) -> str:
        step, value = self.best or (0, math.nan)
        name = f"validation {self.metric}"
        curve = dict(self.history)
        if step == 0:
            later = [value for at, value in self.history if at > 0 and not math.isnan(value)]
            rest = (
                f"the best of {len(later)} later ones {self._best_of(later):.4g}"
                if later
                else "no later one is a number"
            )
            return f"Nothing beat step 0, which is kept: its {name} is {value:.4g}, {rest}."
        others = [f"{curve[at]:.4g} at step {at}" for at in sorted({0, max(curve)} & curve.keys() - {step})]
        against = f", against {' and '.join(others)}" if others else ""
        if step == last:
            return f"Nothing was overfitted: the last step, {step}, has the best {name}, {value:.4g}{against}."
        return f"The weights of step {step} are kept: {name} {value:.4g}{against}."

    def _best_of(self, values: list[float]) -> float:
        return max(values) if self.higher_is_better else min(values)
