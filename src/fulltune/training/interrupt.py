"""Ctrl-C and SIGTERM: the first one ends training after its step, with a checkpoint; the second one at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.runtime import distributed

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_SAID = b"\nInterrupted: this step is finished and a checkpoint is written. Once more stops at once.\n"

Handler = Callable[[int, "FrameType | None"], None]


class StopWhenAsked(TrainerCallback):
    """Asks for a checkpoint after the step in which it was asked to stop, and raises once that is written.

    Args:
        wait: Until the checkpoint is on the disk.

    Attributes:
        is_asked: Somebody wants training to stop.

    Raises (in training):
        KeyboardInterrupt: The checkpoint is written.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait, self.is_asked = wait, False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # A signal reaches several processes between different steps; all stop after the same one.
        self.is_asked = any(distributed.all_gather(self.is_asked))
        return self._save(state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        return self._save(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.is_asked:
            self.wait()
            raise KeyboardInterrupt

    def _save(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        """Where training is at its end there is nothing to go on with, and it ends."""
        if self.is_asked and 0 < state.global_step < state.max_steps and not control.should_training_stop:
            control.should_save = True
        return control


@contextmanager
def stopping_after_a_step(stop: StopWhenAsked) -> Iterator[None]:
    """The first signal asks ``stop``, the second one raises KeyboardInterrupt; a signal that came too late for a
    checkpoint raises it at the end of the block.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_asked:
            raise KeyboardInterrupt
        stop.is_asked = True
        os.write(2, _SAID)

    with _handled(handle):
        yield
    if stop.is_asked:
        raise KeyboardInterrupt


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt too, as Ctrl-C does: a machine that is taken away is no reason to lose a run."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(handle, (signal.SIGTERM,)):
        yield


@contextmanager
def _handled(handle: Handler, signals: tuple[signal.Signals, ...] = _SIGNALS) -> Iterator[None]:
    """Signals reach the main thread only; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
