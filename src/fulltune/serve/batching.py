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
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fulltune.errors import Problem
from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.serve.refusals import Refusal
from fulltune.tasks.base import Example

if TYPE_CHECKING:
    from fulltune.serve.metrics import Metrics

_log = logging.getLogger(__name__)

#: Weight of the last batch in the running mean of rows per second.
_RECENT = 0.2

#: Inputs are computed together up to this ratio of their lengths; the constant stands for the cost of a batch itself.
_SPREAD, _SHORT = 2, 100  # characters

#: Longest time in seconds after which a refused client is asked to try again.
_LONGEST_RETRY = 60


@dataclass(frozen=True)
class Wishes:
    """Options of generated answers; jobs with different wishes share no batch.

    Attributes:
        max_new_tokens: Maximum number of new tokens; None for that of the config.
        is_strict: Refuse prompts that are too long.
    """

    max_new_tokens: int | None = None
    is_strict: bool = False


@dataclass(frozen=True)
class Answer:
    """The answer to an input: its plain fields, and of a generated one its text and how it came to be."""

    fields: dict[str, Any]
    text: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    is_capped: bool = False


class Job:
    """The inputs of one request, all for one model.

    Canceling ``future`` gives their places in the queue back at once.

    Args:
        model: The model.
        examples: The inputs.
        wishes: The options of their answers.
        stops: Texts at which a generated answer ends; they are not part of it.
        listener: Called with the number of an input and the beginning of its answer, whenever that grows.
    """

    def __init__(
        self,
        model: LoadedModel,
        examples: Sequence[Example],
        wishes: Wishes | None = None,
        stops: Sequence[str] = (),
        listener: Callable[[int, str], None] | None = None,
    ) -> None:
        self.model = model
        self.examples = examples
        self.wishes = wishes or Wishes()
        self.stops = stops
        self.listener = listener
        #: The answers in the order of the inputs.
        self.future: Future[list[Answer]] = Future()
        self._answers = dict[int, Answer]()
        # Inputs of similar length form a batch, as in `predict`.
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].input), reverse=True)
        self.waiting = deque(order)

    def answer(self, index: int, answer: Answer) -> None:
        """Store the answer to an input unless it has one; the last one completes the job."""
        end = first_stop(answer.text, self.stops)
        if end is not None:
            answer = replace(answer, text=answer.text[:end], is_capped=False)
        self._answers.setdefault(index, answer)
        if len(self._answers) == len(self.examples):
            with suppress(InvalidStateError):  # canceled in the meantime
                self.future.set_result([self._answers[place] for place in range(len(self.examples))])

    def follow(self, index: int, prompt_tokens: int, tokens: Sequence[int]) -> None:
        """Pass the beginning of a generated answer on, and end it at a stop text."""
        if index in self._answers or not (self.stops or self.listener):
            return
        text = self.model.beginning(tokens)
        if first_stop(text, self.stops) is not None:
            self.answer(index, Answer({}, text, prompt_tokens, len(tokens)))
        elif self.listener is not None:
            self.listener(index, text)

    def is_done(self, index: int) -> bool:
        """Return True if nobody waits for the answer to an input any more."""
        return index in self._answers or self.future.done()

    def fail(self, error: Exception) -> None:
        """End the job with an error."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


def _answers(model: LoadedModel, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return the answers of a model that reads each input once; a long one does not make short ones padding."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input))
    found = dict[int, dict[str, Any]]()
    while order:
        most = _SPREAD * (len(examples[order[0]].input) + _SHORT)
        count = sum(len(examples[index].input) <= most for index in order)
        part, order = order[:count], order[count:]
        found.update(zip(part, model.answer([examples[index] for index in part]), strict=True))
    return [found[index] for index in range(len(examples))]


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return the position of the stop text that is complete first as the text grows; None if there is none."""
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    return min(found)[1] if found else None


class Abandoned(Exception):
    """Nobody waits for the answers of a batch any more."""


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
        metrics: Counts the batches.
    """

    def __init__(self, capacity: int, metrics: Metrics) -> None:
        self._capacity = capacity
        self._metrics = metrics
        self._jobs = deque[Job]()
        self._changed = threading.Condition()
        self._is_closed = False
        self._rows_per_second = 0.0
        #: The batch that is computed now.
        self.running: list[Row] = []
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

    def submit_next(self, job: Job) -> None:
        """Add a job of the server itself, whose turn is next, whatever waits."""
        with self._changed:
            self._jobs.appendleft(job)
            self._changed.notify_all()

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
            self.running = batch
            # Before its answers: a client that has one may read the metrics at once.
            self._metrics.batch.observe(len(batch))
            self._answer(batch)
            self.running = []
            seconds = time.perf_counter() - started
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
        if not rows:
            return self._jobs[0] if self._jobs else None
        first = rows[0].job
        return next((job for job in self._jobs if job.model is first.model and job.wishes == first.wishes), None)

    def _answer(self, rows: Sequence[Row]) -> None:
        try:
            answers = self._computed(rows)
        except Abandoned:
            return
        except Exception as error:  # noqa: BLE001 - each request gets its own error, and the thread continues
            self._answer_alone(rows, error)
            return
        self._metrics.rows.inc(len(rows))
        for row, answer in zip(rows, answers, strict=True):
            row.job.answer(row.index, answer)

    def _computed(self, rows: Sequence[Row]) -> list[Answer]:
        model, wishes = rows[0].job.model, rows[0].job.wishes
        examples = [row.example for row in rows]
        if not model.generates:
            return [Answer(fields) for fields in _answers(model, examples)]

        def watch(number: int, prompt_tokens: int, tokens: Sequence[int]) -> None:
            row = rows[number]
            row.job.follow(row.index, prompt_tokens, tokens)
            if all(row.job.is_done(row.index) for row in rows):
                raise Abandoned

        found = model.generations(examples, wishes.max_new_tokens, watch, is_strict=wishes.is_strict)
        answers = [Answer(one.fields, one.text, one.prompt_tokens, one.new_tokens, one.is_capped) for one in found]
        self._metrics.tokens.labels("input").inc(sum(answer.prompt_tokens for answer in answers))
        self._metrics.tokens.labels("output").inc(sum(answer.new_tokens for answer in answers))
        return answers

    def _answer_alone(self, rows: Sequence[Row], error: Exception) -> None:
        """Answer the rows of a batch that failed one at a time, so that only those that cannot be answered fail."""
        if len(rows) == 1:
            rows[0].job.fail(error)
            return
        _log.warning("a batch of %d inputs failed (%s): they are answered one at a time", len(rows), error)
        for row in rows:
            if not row.job.future.done():
                self._answer([row])
