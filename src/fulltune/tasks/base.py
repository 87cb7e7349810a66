"""What a task is: it owns its rows, its features and its scores.

A task never knows which method trains it, and a method never knows which task it trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar

from fulltune.config import Config
from fulltune.data.findings import Finding
from fulltune.data.load import Column as Column
from fulltune.data.load import Row
from fulltune.metrics.base import Metric
from fulltune.records.run import Prediction

if TYPE_CHECKING:
    from typing_extensions import Self

    from fulltune.models.bundle import Bundle, Head

#: Examples in, predictions out, in the order of the input, one at a time.
Predictor = Callable[[Sequence["Example"]], Iterator[Prediction]]


@dataclass(frozen=True)
class Example:
    """One row as the task sees it.

    Attributes:
        id: The row's id (``file:line`` unless a column names it).
        input: What the model reads: the text, the source, the prompt.
        target: What it should say: a text, a label, or a tuple of labels.
        meta: What scoring needs beside (the database of a query, say).
    """

    id: str
    input: str
    target: str | tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The target as labels, whether there is one or several."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def answer(self) -> str:
        """The target as one text; several labels are joined by commas."""
        return ", ".join(self.labels)


@dataclass(frozen=True)
class Features:
    """One training sequence: token ids, labels (-100 where no loss is), and the id of the row it came from.

    ``labels`` is a list of token ids for text, a class index, or a list of 0/1 floats for several classes.
    ``cut`` counts the tokens that did not fit, by part of the row (``input``, ``answer``, …).
    """

    input_ids: list[int]
    labels: list[int] | int | list[float]
    row_id: str
    cut: Mapping[str, int] = field(default_factory=dict)

    @property
    def truncated(self) -> int:
        """Tokens that did not fit."""
        return sum(self.cut.values())


@dataclass(frozen=True)
class Facts:
    """What a task learned from the rows: plain data, which can be sent to other processes.

    Attributes:
        labels: Names of the classes in the order of a head's logits; empty for tasks without classes.
        multi_label: Whether several of them may hold at once.
    """

    labels: tuple[str, ...] = ()
    multi_label: bool = False


class Task(ABC):
    """Base of all tasks. A task never changes: :meth:`fit` and :meth:`adopt` return another one that knows more.

    ``families`` are those it can be learnt by. ``head`` says what is put on the pretrained body for training: ``lm``
    (the checkpoint's own) or ``classification``. ``baselines`` names those that
    :mod:`fulltune.evaluation.baselines` runs for it.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    families: ClassVar[tuple[str, ...]]
    head: ClassVar[Head] = "lm"
    baselines: ClassVar[tuple[str, ...]] = ("zero_shot", "few_shot")

    #: What :meth:`fit` or :meth:`adopt` learned.
    facts: Facts = Facts()

    def __init__(self, config: Config) -> None:
        self.config = config
        #: What chat templates are told is today: fixed once a run.
        self.day = config.data.chat_date or date.today()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of a head's logits; empty for tasks without classes."""
        return self.facts.labels

    @property
    def multi_label(self) -> bool:
        """Whether several classes may hold at once."""
        return self.facts.multi_label

    @abstractmethod
    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        """The columns to read, given those that the data has."""

    @abstractmethod
    def example(self, row: Row) -> Example:
        """One parsed row as an example.

        Raises:
            DataError: The row's values contradict each other.
        """

    def learn(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Facts:
        """Return what must be known before any model is loaded (the label names, for example).

        Args:
            train: Examples to train on.
            evaluation: All other examples.
        """
        return Facts()

    def fit(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Self:
        """Return this task with what :meth:`learn` learns from the examples."""
        return self.with_facts(self.learn(train, evaluation))

    def with_facts(self, facts: Facts) -> Self:
        """Return this task with facts that were learned before, in another process for example."""
        task = copy(self)
        task.facts = facts
        return task

    def findings(self, splits: Mapping[str, Sequence[Example]]) -> list[Finding]:
        """Return what the audit should say beside what it finds for every task.

        Args:
            splits: The examples of ``train``, ``eval`` and, where there is one, ``valid``.
        """
        return []

    def adopt(self, bundle: Bundle) -> Self:
        """Return this task with what a tuned model was trained with (its label names), to score it on other data.

        Raises:
            DataError: The data has labels that the model was not trained with.
        """
        return self

    def begin(self, student: Bundle, train: Sequence[Example]) -> None:  # noqa: B027 - a hook, not abstract
        """Ready a fresh head for training."""

    def class_weights(self, train: Sequence[Example]) -> list[float] | None:
        """How much each class counts in the loss, in the order of the logits; None for equally much."""
        return None

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """What is reported; the first decides."""

    @abstractmethod
    def encode(self, example: Example, bundle: Bundle) -> list[Features]:
        """Training sequences of one example; a long document gives several."""

    def longest_input(self, bundle: Bundle) -> int:
        """Return the longest input in tokens that this model is asked: the saved tokenizer cuts there."""
        return bundle.window

    def reads(self, example: Example) -> str:
        """What :meth:`encode` reads beside the example, the config and the tokenizer (a schema, say): sequences are
        kept for as long as this stays the same.
        """
        return ""

    def files(self) -> list[list[Any]]:
        """Return name, size and time of every file that answers are judged by (databases, say): baselines are kept for
        as long as these stay the same.
        """
        return []

    @abstractmethod
    def predictor(self, bundle: Bundle, system: str, shots: Sequence[Example] = ()) -> Predictor:
        """How this bundle answers, with ``shots`` as examples in its context."""

    def ask(self, bundle: Bundle, system: str, text: str, place: str = "") -> Prediction:
        """One answer to a text whose right answer nobody knows; ``place`` says what it is asked of (a database, say).

        Raises:
            ConfigError: There is no such place, or one must be named.
        """
        return next(self.predictor(bundle, system)([Example("asked", text, "")]))

    def details(self, predictions: Iterable[Prediction]) -> dict[str, Any]:
        """Task-specific extras for the report (a confusion matrix, say), from the tuned model's predictions; these
        may be gone through more than once.
        """
        return {}
