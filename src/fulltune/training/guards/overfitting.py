"""Overfitting: the best state on validation rows is kept, and training ends when nothing better comes.

Step 0 is a candidate: the base, or the base with its fresh head. Where nothing beats it, training
gives it back.

    guard = OverfittingGuard("accuracy", patience=3)      # a name in the metrics of your own Trainer's evaluations
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
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fulltune.errors import ConfigError, StoreError, did_you_mean
from fulltune.models.bundle import trained_state
from fulltune.records.run import GuardEvent

#: Metrics by name, of the model as it is now.
Scorer = Callable[[], Mapping[str, float]]

#: What an evaluation tells beside its metrics: no measure of quality.
_SPEED = frozenset({"epoch", "runtime", "samples_per_second", "steps_per_second"})


class BestState:
    """The weights of one step in one safetensors file, so that neither memory nor an interruption takes them.

    Of a model with frozen parameters only those that learn are kept, and what it keeps beside its parameters.

    Memory is what full fine-tuning has least of, and a resumed run needs the file anyway; so it is always the disk.
    Tied tensors are written once. Models sharded over processes are not covered.

    Args:
        path: The file; it is replaced as a whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, model: nn.Module, step: int, value: float) -> None:
        """Write the model's weights in place of those kept before.

        Raises:
            StoreError: They cannot be written (a full disk, say).
        """
        unfinished = self.path.with_name(f".{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            told = {"step": str(step), "value": repr(value), "sha256": _sha256(model)}
            if _has_frozen(model):
                save_file(trained_state(model), unfinished, metadata=told)
            else:
                save_model(model, str(unfinished), metadata=told)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                unfinished.unlink()
            raise StoreError(
                f"the best weights cannot be written ({error})",
                expected="room for one copy of the model",
                fix="free some space, or set guards.overfitting to null",
                where=str(self.path),
            ) from error

    def kept(self) -> tuple[int, float] | None:
        """Step and value of the weights in the file; None where there is no whole file."""
        try:
            with safe_open(self.path, framework="pt") as file:
                found = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        return (int(found["step"]), float(found["value"])) if {"step", "value"} <= found.keys() else None

    def restore(self, model: nn.Module) -> None:
        """Put the kept weights into the model, bit for bit.

        Raises:
            StoreError: They are not those that were written.
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
                "the best weights are not those that were written",
                fix="look after this disk, and start the run anew",
                where=str(self.path),
            )

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)


def _sha256(model: nn.Module) -> str:
    """One hash over what training changes, by name."""
    whole = hashlib.sha256()
    for name, value in trained_state(model).items():
        octets: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        whole.update(name.encode())
        whole.update(octets)
    return whole.hexdigest()


def _has_frozen(model: nn.Module) -> bool:
    return any(not value.requires_grad for value in model.parameters())


class OverfittingGuard(TrainerCallback, ExportableState):
    """Keeps the best of all evaluated states, stops when ``patience`` evaluations brought no better one, restores it.

    Works alone in any :class:`transformers.Trainer` with an evaluation set, which it makes evaluate before the first
    step too. What it chooses by must be validation rows: rows that choose no longer tell how good the choice is.

    A run that is resumed goes on with the same best state (``best.safetensors`` in the output folder) and the same
    patience. Leave ``restore_callback_states_from_checkpoint`` off: the guard finds its own state.

    Args:
        metric: A name in the metrics of an evaluation, with or without ``eval_``.
        patience: Evaluations in a row without a better one that end training; 0 never ends it.
        min_delta: Smallest change that counts as better.
        higher_is_better: By default a name that ends in ``loss`` is better low; any other as
            ``TrainingArguments.greater_is_better`` says, and high where that says nothing.
        scorer: More metrics, computed after each evaluation.

    Attributes:
        whole: The model to keep and to restore, where an engine trains a sharded copy of it.
        history: ``(step, value)`` of every evaluation so far.
        best: Step and value of the weights that are kept; None before the first evaluation.
        events: What was decided.
        seconds: Wall time spent in ``scorer`` and in keeping weights.

    Raises (in training, before the first step):
        ConfigError: No evaluation gives the metric; names those that it gives.
    """

    def __init__(
        self,
        metric: str = "loss",
        patience: int = 3,
        min_delta: float = 0.0,
        higher_is_better: bool | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.higher_is_better, self.scorer = higher_is_better, scorer
        self.history: list[tuple[int, float]] = []
        self.best: tuple[int, float] | None = None
        self.events: list[GuardEvent] = []
        self.seconds = 0.0
        self.whole: nn.Module | None = None
        #: The file of the best weights stays at the end, for whoever may have to resume from before it.
        self.leaves_file = False
        self._names: set[str] = set()
        self._state: BestState | None = None

    @property
    def best_step(self) -> int | None:
        """The step whose weights are kept."""
        return None if self.best is None else self.best[0]

    def state(self) -> dict[str, Any]:
        """Plain numbers for ``trainer_state.json``; the weights lie in a file of their own."""
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
        self.events, self.history, self.best = [], [], None
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
        found = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        found |= self.scorer() if self.scorer else {}
        self._names |= found.keys()
        name = self.metric if self.metric in found else self.metric.removeprefix("eval_")
        if name in found:
            self._see(state.global_step, float(found[name]), self.whole or kwargs["model"], state.is_world_process_zero)
        self.seconds += time.perf_counter() - started
        if self._is_stuck() and state.global_step < state.max_steps:
            control.should_training_stop = True
            self._tell("stop", state.global_step, self._stop_message(state))
        return control

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.history:
            known = sorted(self._names - _SPEED)
            raise ConfigError(
                f"no evaluation gives {self.metric!r}",
                expected=f"one of {', '.join(known)}" if known else "an evaluation before the first step",
                fix=did_you_mean(self.metric.removeprefix("eval_"), known) or "choose one of these",
                field="guards.overfitting.metric",
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.finish(self.whole or kwargs["model"], state.global_step, writes=state.is_world_process_zero)

    def finish(self, model: nn.Module, step: int, *, writes: bool = True) -> None:
        """Training ended at ``step``, in whatever way: put the best weights back, say so, and remove their file.

        Called by itself at the end of training; by hand after training that an exception ended. Does nothing the second
        time.
        """
        if self._state is None:
            return
        if self.best is not None:
            if self.best[0] != step:
                self._state.restore(model)
            self._tell("continue", self.best[0], self._keep_message(step))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # all have read the file before it goes
        if writes and not self.leaves_file:
            self._state.drop()
        self._state = None

    def _resume(self, state: TrainerState) -> None:
        kept = self._state.kept() if self._state else None
        states: Any = state.stateful_callbacks
        saved = states.get(type(self).__name__)
        if kept is None or not isinstance(saved, dict):
            return
        points = saved.get("attributes", {}).get("history", [])
        # The file may hold a later step than the checkpoint, when training was rolled back; it is as good as any.
        self.history = [(int(step), float(value)) for step, value in points if step <= state.global_step]
        self.best = kept

    def _see(self, step: int, value: float, model: nn.Module, writes: bool) -> None:
        self.history.append((step, value))
        if not math.isnan(value) and (self.best is None or self._gain(value) > self.min_delta):
            self.best = (step, value)
            if writes and self._state is not None:
                self._state.keep(model, step, value)

    def _gain(self, value: float) -> float:
        """How much better than the best so far."""
        best = self.best[1] if self.best else math.nan
        return value - best if self.higher_is_better else best - value

    def _waited(self) -> int:
        """Evaluations since the best one."""
        best = -1 if self.best is None else self.best[0]
        return sum(step > best for step, _ in self.history)

    def _is_stuck(self) -> bool:
        return 0 < self.patience <= self._waited()

    def _tell(self, verdict: Any, step: int, message: str) -> None:
        self.events.append(GuardEvent(guard="overfitting", step=step, verdict=verdict, message=message))

    def _stop_message(self, state: TrainerState) -> str:
        step, value = self.best or (0, math.nan)
        better = "rise above" if self.higher_is_better else "fall below"
        return (
            f"The validation {self.metric} did not {better} {value:.4g} (step {step}) in {self._waited()} evaluations; "
            f"training stopped at step {state.global_step} of {state.max_steps}."
        )

    def _keep_message(self, last: int) -> str:
        step, value = self.best or (0, math.nan)
        name, curve = f"validation {self.metric}", dict(self.history)
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
            return f"The last step, {step}, is the best: {name} {value:.4g}{against}."
        return f"The weights of step {step} are kept: {name} {value:.4g}{against}."

    def _best_of(self, values: list[float]) -> float:
        return max(values) if self.higher_is_better else min(values)
