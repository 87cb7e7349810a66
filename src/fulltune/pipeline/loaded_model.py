"""Load a tuned model to answer texts: ``fulltune.load(run)(texts)``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fulltune.config import Config, ConfigSource, load_config
from fulltune.data import chats
from fulltune.errors import ConfigError, DataError, Problem, shortened
from fulltune.metrics import wording
from fulltune.pipeline.job import checked_task_and_method, with_current_chat_date
from fulltune.pipeline.model_loading import find_model
from fulltune.pipeline.named_run import named_run, with_labels
from fulltune.records.run import SCORES_ONLY, Record, read_record
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.store.runs import name_and_folder
from fulltune.tasks.base import Example, Task
from fulltune.tasks.generating import Generating, Generation, Messages, Watch

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

#: Batches per block.
_BATCHES = 32

#: One input: a text, or a row with the columns of the input.
Input = str | Mapping[str, Any]


class LoadedModel:
    """A model that answers texts as it did in the evaluation of its run.

    An answer does not depend on the other texts of a call, nor on their number.

    Attributes:
        name: The run, the version, or any other model.
        config: The config that it is asked by.
        task: The task.
        model, tokenizer: The objects of transformers.
    """

    def __init__(self, name: str, config: Config, task: Task, bundle: Bundle, system: str) -> None:
        self.name = name
        self.config = config
        self.task = task
        self.model = bundle.model
        self.tokenizer = bundle.tokenizer
        self._bundle = bundle
        self._system = system

    @overload
    def __call__(self, inputs: Input, *, database: str = "") -> dict[str, Any]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, inputs: Iterable[Input], *, database: str = "") -> list[dict[str, Any]]: ...
    def __call__(self, inputs: Input | Iterable[Input], *, database: str = "") -> dict[str, Any] | list[dict[str, Any]]:
        """Answer texts.

        Args:
            inputs: Texts, or rows with the input columns of the task (other columns are ignored); or one of them alone.
            database: text2sql: the database of texts and of rows without a ``db_id``.

        Returns:
            One dict per input in the order of the inputs; for a single input one dict. ``prediction`` is the answer; by
            task, ``probabilities`` has the probability of each label, rounded to four decimals, ``text`` a generated
            text, ``sql`` a query.

        Raises:
            DataError: Inputs are neither texts nor rows with these columns; all of them at once.
            ConfigError: The database of a question is not known.
        """
        if isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Iterable):
            return self([inputs], database=database)[0]
        examples = self._examples(list(inputs), database)
        return list(self.answer(examples)) if examples else []

    def answer(self, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yield the answers to examples, in their order and in batches."""
        with self._kernels():
            yield from self.task.answers(self._bundle, self._system, examples)

    @property
    def generates(self) -> bool:
        """True if answers are generated texts."""
        return isinstance(self.task, Generating)

    def generations(
        self,
        examples: Sequence[Example],
        max_new_tokens: int | None = None,
        watch: Watch | None = None,
        *,
        is_strict: bool = False,
    ) -> Iterator[Generation]:
        """Yield generated answers, as :meth:`Generating.generations` does."""
        task = self._generating()
        with self._kernels():
            yield from task.generations(self._bundle, examples, max_new_tokens, watch, is_strict=is_strict)

    def beginning(self, tokens: Sequence[int]) -> str:
        """Return the beginning of an answer that its first tokens determine."""
        return self._generating().beginning(self._bundle, tokens)

    def continuation(self, text: str, database: str = "") -> Example:
        """Return the example of a text to continue; of a task with an input, of the input.

        Raises:
            ConfigError: The database of a question is not known.
        """
        return self._generating().continuation(text, database)

    def conversation(self, messages: Messages, database: str = "") -> Example:
        """Return the example of a chat.

        Raises:
            DataError: The model takes no such chat.
            ConfigError: The database of a question is not known.
        """
        return self._generating().conversation(messages, self._bundle, database)

    def _generating(self) -> Generating:
        if isinstance(self.task, Generating):
            return self.task
        raise ConfigError(f"the task {self.task.name}", expected="a task that generates text", fix="use `predict`")

    @property
    def block(self) -> int:
        """Rows that are answered at a time. They are sorted by length together, as the evaluation of a run does."""
        return self.config.evaluation.batch_size * _BATCHES

    @property
    def identity(self) -> list[Any]:
        """Everything that the answers depend on besides the inputs, as plain data."""
        info = self._bundle.info
        settings = self.config.model_dump(mode="json", include={"data", "evaluation", "generation", "task"})
        return [info.sha256, info.reconciled, self._system, self.task.version, self.task.labels, settings]

    def __repr__(self) -> str:
        return f"<{self.name}: {self.task.name} by {type(self.model).__name__}>"

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        # Imported here: what needs no model is checked without torch.
        from fulltune.models.fast_kernels import fast_kernels

        with pinned_kernels(self.config.speed.kernels), fast_kernels(self.model):
            yield

    def _examples(self, inputs: Sequence[Any], database: str) -> list[Example]:
        rows = []
        problems = list[Problem]()
        for number, value in enumerate(inputs):
            try:
                rows.append(self._row(value, number))
            except DataError as error:
                problems += error.problems
        if problems:
            raise DataError(problems)
        return [self.task.request(row, database) for row in rows]

    def _row(self, value: Any, number: int) -> dict[str, Any]:
        """Return the fields of an input by role.

        Raises:
            DataError: A column is missing, or a value is not text.
        """
        where = f"input {number}"
        if isinstance(value, str):
            return {self.task.inputs[0]: value}
        if not isinstance(value, Mapping):
            raise DataError(f"found {shortened(value)}", expected="a text, or a row as a mapping", where=where)
        data = self.config.data
        columns = data.columns_of(self.task.inputs, value)
        given = {role: value[name] for role, name in columns.items() if value[name] is not None}
        if chats.MESSAGES in given:
            fields = chats.asked(given[chats.MESSAGES])
            if isinstance(fields, Problem):
                raise DataError(replace(fields, where=where, field=columns[chats.MESSAGES]))
            return fields
        if not set(given) - {"db_id"}:
            listed = ", ".join(map(repr, value)) or "no columns"
            raise DataError(f"found {listed}", expected=f"the column {data.column(self.task.inputs[0])!r}", where=where)
        wrong = {columns[role]: text for role, text in given.items() if not isinstance(text, str)}
        if wrong:
            raise DataError(
                [Problem(f"found {shortened(text)}", "a text", "", where, name) for name, text in wrong.items()]
            )
        return given


@dataclass(frozen=True)
class UnloadedModel:
    """A model and how it is asked, before it is loaded: what can be checked within a second.

    Attributes:
        name: Name for people: the run, the version, or any other model.
        source: Name to load it by.
        out: Folder of the runs and the registry.
        config: Task and data.
        task: The task, with its labels if it has any.
        run: Folder of the run or the version; None for another model.
    """

    name: str
    source: str
    out: Path
    config: Config
    task: Task
    run: Path | None = None

    @property
    def warning(self) -> str:
        """Say that the run of a tuned model was rejected or stopped, and why; empty for any other model."""
        if self.run is None or not (self.run / "record.json").is_file():
            return ""
        record = read_record(self.run)
        if record.outcome not in ("rejected", "stopped"):
            return ""
        why = f": {record.reasons[0].splitlines()[0]}" if record.reasons else ""
        use = record.recommendation.use if record.recommendation and record.task != SCORES_ONLY else ""
        instead = f"; `fulltune predict {self.name}#{use}` answers with {wording.system(use)}" if use else ""
        return f"This model was {record.outcome}{why}{instead}."

    def load(self) -> LoadedModel:
        """Load the model.

        Raises:
            FulltuneError: It cannot be loaded, or does not fit the task.
        """
        task, bundle, system = find_model(self.config, self.task, self.source, self.out)
        return LoadedModel(self.name, with_current_chat_date(self.config, task, bundle), task, bundle, system)


def unloaded_model(
    name: str | Path | Record,
    config: ConfigSource | None,
    out: str | Path,
    overrides: Sequence[str],
    options: Mapping[str, Any],
) -> UnloadedModel:
    """Return how a model is asked, with the arguments of :func:`load`."""
    source, folder = name_and_folder(name, out)
    run = None if config is not None else named_run(source, None, folder)
    settings = load_config(run.folder / "config.yaml" if run else config, overrides, options=options)
    task = with_labels(checked_task_and_method(settings)[0], settings, run)
    if run is None:
        return UnloadedModel(source, source, folder, settings, task)
    return UnloadedModel(run.name, run.name, run.out, settings, task, run.folder)


def load(
    name: str | Path | Record,
    config: ConfigSource | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    **options: Any,
) -> LoadedModel:
    """Load a tuned model, or any other, to answer texts.

    Args:
        name: A run (its id, the beginning of it, its folder, its record, or ``latest``), a version of the registry, or
            any other model, which then needs a config.
        config: Task and data; by default those of the run, whose rows are not read.
        out: The runs folder.
        overrides: ``a.b=value`` texts, applied last.
        options: Keys of the config, merged over it, such as ``evaluation={"batch_size": 64}``.

    Raises:
        FulltuneError: The run, the model or the config cannot be loaded.
    """
    return unloaded_model(name, config, out, overrides, options).load()
