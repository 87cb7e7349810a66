"""Define the interface of tasks. A task defines its rows, its features and its scores.

Tasks are independent of the methods that train them, and methods are independent of tasks.
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
from fulltune.errors import Problem
from fulltune.metrics.base import Metric
from fulltune.records.run import Prediction

if TYPE_CHECKING:
    from typing_extensions import Self

    from fulltune.models.bundle import Bundle, Head

#: Function from examples to predictions, in the order of the input, one at a time.
Predictor = Callable[[Sequence["Example"]], Iterator[Prediction]]


@dataclass(frozen=True)
class Example:
    """One row as the task sees it.

    Attributes:
        id: Id of the row (``file:line`` unless a column names it).
        input: Input of the model: the text, the source, the prompt.
        target: Expected output: a text, a label, or a tuple of labels.
        meta: Further data for scoring (such as the database of a query).
        group: The group of the row (``data.group``); empty if it belongs to none.
        part: The group, folder or database that scores are also given by; empty if there is none.
    """

    id: str
    input: str
    target: str | tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    part: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The target as a tuple of labels."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def answer(self) -> str:
        """The target as one text; several labels are separated by commas."""
        return ", ".join(self.labels)


@dataclass(frozen=True)
class Features:
    """One training sequence: token ids, labels (-100 for positions without a loss), and the id of its row.

    ``labels`` is a list of token ids for text, a class index, or a list of 0/1 floats for several classes.
    ``removed`` counts the truncated tokens by part of the row (``input``, ``answer``, …).
    """

    input_ids: list[int]
    labels: list[int] | int | list[float]
    row_id: str
    removed: Mapping[str, int] = field(default_factory=dict)

    @property
    def truncated(self) -> int:
        """Number of truncated tokens."""
        return sum(self.removed.values())


@dataclass(frozen=True)
class Facts:
    """Facts that a task learned from the rows: plain data that can be sent to other processes.

    Attributes:
        labels: Names of the classes in the order of a head's logits; empty for tasks without classes.
        multi_label: True if several classes may apply at once.
    """

    labels: tuple[str, ...] = ()
    multi_label: bool = False


class Task(ABC):
    """Base of all tasks. Tasks are immutable: :meth:`fit` and :meth:`adopt` return a new task with more facts.

    ``families`` lists the model families that the task supports. ``head`` is the head on the pretrained body for
    training: ``lm`` (of the checkpoint) or ``classification``. ``baselines`` lists the baselines that
    :mod:`fulltune.evaluation.baselines` runs for the task; any other name is passed to :meth:`predictor`.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    families: ClassVar[tuple[str, ...]]
    head: ClassVar[Head] = "lm"
    baselines: ClassVar[tuple[str, ...]] = ("zero_shot", "few_shot")

    #: The parts of rows without groups: ``folder`` or ``database``.
    part: ClassVar[str] = "folder"

    #: Longest sequence in tokens without ``data.max_length``.
    usual_length: ClassVar[int] = 512

    #: Roles of the columns that an input may have; a text alone is the first one.
    inputs: ClassVar[tuple[str, ...]] = ("text",)

    #: Facts from :meth:`fit` or :meth:`adopt`.
    facts: Facts = Facts()

    def __init__(self, config: Config) -> None:
        self.config = config
        #: Today's date in chat templates, fixed for the run.
        self.day = config.data.chat_date or date.today()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of a head's logits; empty for tasks without classes."""
        return self.facts.labels

    @property
    def multi_label(self) -> bool:
        """True if several classes may apply at once."""
        return self.facts.multi_label

    @abstractmethod
    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        """Return the columns to read, given the columns of the data."""

    @abstractmethod
    def example(self, row: Row) -> Example:
        """Convert a parsed row to an example.

        Raises:
            DataError: The values of the row contradict each other.
        """

    def learn(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Facts:
        """Return the facts that are needed before a model is loaded (such as the label names).

        Args:
            train: Examples to train on.
            evaluation: All other examples.
        """
        return Facts()

    def fit(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Self:
        """Return this task with the facts that :meth:`learn` returns for the examples."""
        return self.with_facts(self.learn(train, evaluation))

    def with_facts(self, facts: Facts) -> Self:
        """Return this task with given facts, for example from another process."""
        task = copy(self)
        task.facts = facts
        return task

    def scoring(self, evaluation: Sequence[Example]) -> Self:
        """Return this task with what it must know of the rows that are scored, without those of ``data.valid``."""
        return self

    def unusable(self, examples: Sequence[Example]) -> Mapping[str, Problem]:
        """Return the problems of rows that cannot be trained on, by row id; they are left out with the bad rows."""
        return {}

    def findings(self, splits: Mapping[str, Sequence[Example]]) -> list[Finding]:
        """Return findings for the audit in addition to those of all tasks.

        Args:
            splits: The examples of ``train``, ``eval`` and, if there is one, ``valid``.
        """
        return []

    def advice(self, examples: Sequence[Example], row_tokens: float, count: Callable[[str], int]) -> list[str]:
        """Return advice for a plan.

        Args:
            examples: Rows of train.
            row_tokens: Mean number of tokens of a training sequence.
            count: Function from a text to the number of its tokens.
        """
        return []

    def adopt(self, bundle: Bundle) -> Self:
        """Return this task with the facts that a tuned model was trained with (its label names), to score other data.

        Raises:
            DataError: The data has labels that the model was not trained with.
        """
        return self

    def begin(self, bundle: Bundle, train: Sequence[Example]) -> None:  # noqa: B027 - a hook, not abstract
        """Initialize a new head before training."""

    def class_weights(self, train: Sequence[Example]) -> list[float] | None:
        """Return the weight of each class in the loss, in the order of the logits, or None for equal weights."""
        return None

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics of the task; the first one is the deciding metric."""

    @abstractmethod
    def encode(self, example: Example, bundle: Bundle) -> list[Features]:
        """Return the training sequences of an example; a long document gives several."""

    def window(self, bundle: Bundle) -> int:
        """Return the longest sequence of training in tokens: that of the config, at most the positions of the model."""
        return min(self.config.data.max_length or self.usual_length, bundle.window)

    def longest_input(self, bundle: Bundle) -> int:
        """Return the longest input in tokens at inference; the saved tokenizer truncates there."""
        return bundle.window

    def reads(self, example: Example) -> str:
        """Return other data that :meth:`encode` depends on (such as a schema), besides example, config and tokenizer.

        Cached sequences are valid while this value stays the same.
        """
        return ""

    def files(self) -> list[list[Any]]:
        """Return name, size and time of every file that scoring depends on (such as databases).

        Cached baselines are valid while these values stay the same.
        """
        return []

    @abstractmethod
    def predictor(self, bundle: Bundle, system: str, shots: Sequence[Example] = ()) -> Predictor:
        """Return the function with which this bundle predicts, with ``shots`` as examples in its context."""

    def request(self, row: Mapping[str, Any], place: str = "") -> Example:
        """Return the example of an input without a target.

        Args:
            row: The fields of the input, by role, such as ``{"text": …}``.
            place: The database, unless the row names one.

        Raises:
            ConfigError: There is no such place, or the place must be named.
        """
        return Example("asked", next(iter(row.values())), "")

    def answers(self, bundle: Bundle, system: str, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yield plain answers to examples without a target: ``prediction``, and more by task."""
        for prediction in self.predictor(bundle, system)(examples):
            yield {"prediction": prediction.output}

    def ask(self, bundle: Bundle, system: str, text: str, place: str = "") -> Prediction:
        """Answer a text without a reference; ``place`` is where it is asked (such as a database).

        Raises:
            ConfigError: There is no such place, or the place must be named.
        """
        return next(self.predictor(bundle, system)([self.request({self.inputs[0]: text}, place)]))

    def details(self, predictions: Iterable[Prediction]) -> dict[str, Any]:
        """Return task-specific data for the report (such as a confusion matrix) from the tuned model's predictions.

        The predictions may be iterated several times.
        """
        return {}
