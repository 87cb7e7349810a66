"""Handle Ctrl-C and SIGTERM: the first signal ends training after its step, the second one ends it at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.runtime import distributed
from fulltune.runtime.signals import handled

_MESSAGE = b"\nInterrupted: this step is finished and a checkpoint is written. A second signal stops at once.\n"


class StopWhenAsked(TrainerCallback):
    """Stop training after a request: write a checkpoint after the current step, and raise.

    Args:
        wait: Waits until the checkpoint is on disk.

    Attributes:
        is_asked: Training was asked to stop.

    Raises (in training):
        KeyboardInterrupt: The checkpoint is written.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait
        self.is_asked = False

    def ask(self) -> None:
        """Ask training to stop."""
        self.is_asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # A signal may reach the processes in different steps; all of them must stop after the same one.
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
        # After the last step there is nothing to resume.
        if self.is_asked and 0 < state.global_step < state.max_steps and not control.should_training_stop:
            control.should_save = True
        return control


@contextmanager
def stopping_after_a_step(stop: StopWhenAsked) -> Iterator[None]:
    """Ask ``stop`` at the first signal, and raise KeyboardInterrupt at the second one.

    A signal after the last checkpoint raises KeyboardInterrupt at the end of the block.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_asked:
            raise KeyboardInterrupt
        stop.ask()
        os.write(2, _MESSAGE)

    with handled(handle):
        yield
    if stop.is_asked:
        raise KeyboardInterrupt
