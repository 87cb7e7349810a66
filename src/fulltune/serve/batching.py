"""Answer the inputs of concurrent requests in common batches, on one thread that owns the model.

Whatever waits when the model is free forms the next batch, so that no request is delayed to wait for others.
Requests take turns: one with hundreds of inputs does not hold up one with a single input.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fulltune.errors import Problem
from fulltune.pipeline.loaded import LoadedModel
from fulltune.serve.refusals import Refusal
from fulltune.tasks.base import Example

if TYPE_CHECKING:
    from fulltune.serve.metrics import Metrics

_log = logging.getLogger(__name__)

#: Weight of the last batch in the running mean of rows per second.
_RECENT = 0.2

#: Longest time in seconds after which a refused client is asked to try again.
_LONGEST_RETRY = 60


class Job:
    """The inputs of one request, all for one model.

    Canceling ``future`` gives their places in the queue back at once.

    Args:
        model: The model.
        examples: The inputs.
    """

    def __init__(self, model: LoadedModel, examples: Sequence[Example]) -> None:
        self.model = model
        self.examples = examples
        #: The answers in the order of the inputs.
        self.future: Future[list[dict[str, Any]]] = Future()
        self._answers = dict[int, dict[str, Any]]()
        # Inputs of similar length form a batch, as in `predict`.
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].input), reverse=True)
        self.waiting = deque(order)

    def answer(self, index: int, answer: dict[str, Any]) -> None:
        """Store the answer to an input; the last one completes the job."""
        self._answers[index] = answer
        if len(self._answers) == len(self.examples):
            with suppress(InvalidStateError):  # canceled in the meantime
                self.future.set_result([self._answers[place] for place in range(len(self.examples))])

    def fail(self, error: Exception) -> None:
        """End the job with an error."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True)
class Row:
    """One input of a job."""

    job: Job
    index: int

    @property
    def example(self) -> Example:
        return self.job.examples[self.index]


class Batcher:
    """A thread that answers the inputs of waiting jobs, batch by batch.

    Args:
        capacity: Inputs that may wait.
        metrics: Where batches are counted.
    """

    def __init__(self, capacity: int, metrics: Metrics) -> None:
        self._capacity = capacity
        self._metrics = metrics
        self._jobs = deque[Job]()
        self._changed = threading.Condition()
        self._is_closed = False
        self._rows_per_second = 0.0
        self._thread = threading.Thread(target=self._run, name="fulltune-model", daemon=True)
        metrics.queue.set_function(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """Number of inputs that wait."""
        with self._changed:
            return self._waiting()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Add a job.

        Raises:
            Refusal: The queue has no room for its inputs.
        """
        with self._changed:
            waiting = self._waiting()
            if waiting and waiting + len(job.waiting) > self._capacity:
                raise self._full(waiting)
            self._jobs.append(job)
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._forget(job))

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _waiting(self) -> int:
        return sum(len(job.waiting) for job in self._jobs)

    def _full(self, waiting: int) -> Refusal:
        seconds = math.ceil(waiting / self._rows_per_second) if self._rows_per_second else 1
        retry = min(max(1, seconds), _LONGEST_RETRY)
        problem = Problem(
            f"{waiting:,} inputs wait for the model",
            f"room for these in a queue of {self._capacity:,}",
            f"try again in {retry} s",
        )
        return Refusal(429, problem, headers={"Retry-After": str(retry)})

    def _forget(self, job: Job) -> None:
        """Remove a job that is done or was canceled."""
        with self._changed, suppress(ValueError):
            self._jobs.remove(job)

    def _run(self) -> None:
        while batch := self._next():
            started = time.perf_counter()
            self._answer(batch)
            seconds = time.perf_counter() - started
            self._metrics.batch.observe(len(batch))
            self._metrics.batch_seconds.observe(seconds)
            rate = len(batch) / max(seconds, 1e-6)
            before = self._rows_per_second or rate
            self._rows_per_second = before + _RECENT * (rate - before)

    def _next(self) -> list[Row]:
        """Return the next batch once there is one; an empty one at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            rows = list[Row]()
            while len(rows) < self._size(rows) and (job := self._turn(rows)):
                self._jobs.remove(job)
                rows.append(Row(job, job.waiting.popleft()))
                if job.waiting:
                    self._jobs.append(job)
            return rows

    def _size(self, rows: Sequence[Row]) -> int:
        return rows[0].job.model.config.evaluation.batch_size if rows else 1

    def _turn(self, rows: Sequence[Row]) -> Job | None:
        """Return the job whose turn it is, of those that can be answered together with the rows."""
        return next((job for job in self._jobs if not rows or job.model is rows[0].job.model), None)

    def _answer(self, rows: Sequence[Row]) -> None:
        try:
            answers = list(rows[0].job.model.answer([row.example for row in rows]))
        except Exception as error:  # noqa: BLE001 - each request gets its own error, and the thread goes on
            self._answer_alone(rows, error)
            return
        self._metrics.rows.inc(len(rows))
        for row, answer in zip(rows, answers, strict=True):
            row.job.answer(row.index, answer)

    def _answer_alone(self, rows: Sequence[Row], error: Exception) -> None:
        """Answer the rows of a batch that failed one at a time, so that only those that cannot be answered fail."""
        if len(rows) == 1:
            rows[0].job.fail(error)
            return
        _log.warning("a batch of %d inputs failed (%s): they are answered one at a time", len(rows), error)
        for row in rows:
            if not row.job.future.done():
                self._answer([row])
