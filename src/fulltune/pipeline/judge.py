"""Judge a training by any tool: ``fulltune.Judge`` scores a model before and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.config import Config, load_config
from fulltune.errors import ConfigError, DataError
from fulltune.evaluation.prediction_files import Answers
from fulltune.evaluation.verdict import verdict
from fulltune.pipeline import model_loading
from fulltune.pipeline.job import checked_task_and_method, with_chat_date_of
from fulltune.records.run import Prediction, Record, Score
from fulltune.records.verdict import PairVerdict
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.runtime.progress import Progress, progress_of
from fulltune.store.runs import name_and_folder
from fulltune.tasks import dataset
from fulltune.tasks.base import Example, Task

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

#: Tasks whose answers are all that their deciding metric needs.
_ANSWERED = ("classification", "seq2seq")

#: A function from texts to answers, in their order: labels, lists of labels, or texts.
Function = Callable[[list[str]], Sequence[Any]]


@dataclass(frozen=True)
class Judged:
    """The scores and answers of a model on the rows of a judge.

    Attributes:
        metric: The deciding metric.
        scores: Every metric with its interval, by name.
        answers: The answers, one per row.
    """

    metric: str
    scores: Mapping[str, Score]
    answers: Answers

    @property
    def value(self) -> float:
        """The deciding score."""
        return self.scores[self.metric].value

    def save(self, path: str | Path) -> Path:
        """Write the answers as JSON Lines, for a verdict in another process or by ``fulltune verdict``."""
        target = Path(path)
        lines = [row.model_dump_json() for row in self.answers.rows]
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return target

    def __repr__(self) -> str:
        score = self.scores[self.metric]
        return f"<{self.metric} {score.value:.4g} [{score.low:.4g}, {score.high:.4g}] on {len(self.answers.rows)} rows>"


class Judge:
    """Score models on the same rows, before and after a training by any tool.

        judge = fulltune.Judge("test.jsonl", "classification", text="sentence", label="topic")
        before = judge(model, tokenizer)
        …  # train with anything
        after = judge(model, tokenizer)
        print(judge.verdict(before, after).headline)

    Rows, prompts, metrics and statistics are those of a run. Weights, mode, settings and random numbers of a model are
    the same after it was judged.

    Args:
        rows: Rows that are not used for training: a file, a data frame, a dataset, or a list of dicts.
        task: Any task of fulltune.
        out: The runs folder, for models that are named.
        evaluation: Keys of the section ``evaluation`` of a config, such as ``{"max_new_tokens": 64}``.
        progress: Where the rows are counted: by default a terminal or a notebook; False for nothing.
        data: Keys of the section ``data`` of a config: names of columns (``text``, ``label``, ``group``, ``id``, …),
            ``label_names``, ``databases``, ``max_length`` and so on.

    Raises:
        FulltuneError: The rows or options cannot be used; lists all problems.
    """

    def __init__(
        self,
        rows: Any,
        task: str,
        *,
        out: str | Path = "runs",
        evaluation: Mapping[str, Any] | None = None,
        progress: Progress | bool | None = None,
        **data: Any,
    ) -> None:
        sections = {"data": {"train": rows, "eval": rows, **data}, "evaluation": dict(evaluation or {})}
        self.config: Config = load_config({"model": "judged", "task": task, **sections})
        self.out = Path(out)
        self._progress = progress
        fitted, self._data = dataset.prepare(self.config, checked_task_and_method(self.config)[0])
        self._data.eval.table.complete(self.config.data)
        self.task: Task = fitted

    def __call__(self, model: Any, tokenizer: Any = None) -> Judged:
        """Score a model.

        Args:
            model: A model of transformers (also with adapters of PEFT), whose ``tokenizer`` is required; or the name of
                a model: a folder, a run, a version of the registry or a hub id; or, for ``classification`` and
                ``seq2seq``, a function from a list of texts to their answers.
            tokenizer: Tokenizer of a model.

        Raises:
            FulltuneError: The model cannot be used for the task, or for these labels.
        """
        if isinstance(model, str | Path | Record):
            return self._named(model)
        if callable(model) and not hasattr(model, "parameters"):
            return self._function(model)
        from fulltune.models.in_memory import borrowed

        with borrowed(model, tokenizer) as bundle:
            config = self.config.model_copy(update={"model": bundle.info.source})
            bundle = model_loading.for_task(bundle, config, self.task)
            if bundle.head != self.task.head and bundle.head == "classification":
                raise ConfigError(
                    f"a model with a classification head for the task {self.task.name}",
                    expected="a model with a language-modeling head",
                    field="model",
                )
            return self._scored(_with_labels_of(self.task, bundle), bundle)

    def verdict(self, before: Any, after: Any, **options: Any) -> PairVerdict:
        """Return the verdict on the model after training; ``improved`` means that it is better than before.

        Args:
            before, after: Results of this judge, or files that :meth:`Judged.save` wrote.
            options: Arguments of :func:`fulltune.verdict`, such as ``margin`` and ``require``. Those that
                ``evaluation`` has are taken from it by default.

        Raises:
            FulltuneError: The answers are not to the same rows, or an option has no meaning.
        """
        settings = self.config.evaluation
        defaults = {name: getattr(settings, name) for name in ("min_effect", "confidence", "resamples")}
        defaults["metric"] = self.task.metrics[0].name
        sides = [_side(one, name) for one, name in ((before, "before"), (after, "after"))]
        found = verdict(*sides, **defaults | options)
        assert isinstance(found, PairVerdict)
        return found

    # ---- Kinds of models ----

    def _named(self, model: str | Path | Record) -> Judged:
        name, out = name_and_folder(model, self.out)
        config = with_chat_date_of(self.config, name, out)
        task, bundle, system = model_loading.find_model(config, self.task, name, out)
        own = bundle.stored_head
        if system == "zero_shot" and task.head == "classification" and own and _order(task, own.labels):
            config = config.model_copy(update={"model": name})
            bundle = model_loading.load_model(config, task, out, head="classification", labels=())
            task = _with_labels_of(task, bundle)
        return self._scored(task, bundle)

    def _function(self, function: Function) -> Judged:
        if self.task.name not in _ANSWERED:
            raise ConfigError(
                f"a function for the task {self.task.name}, which needs more than answers",
                expected="a model and its tokenizer, or the name of a model",
                field="model",
            )

        def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
            outputs = list(function([example.input for example in examples]))
            if len(outputs) != len(examples):
                raise DataError(
                    f"the function returned {len(outputs):,} answers", expected=f"{len(examples):,}, one per text"
                )
            for example, output in zip(examples, outputs, strict=True):
                yield Prediction(
                    system="judged",
                    id=example.id,
                    input=example.input,
                    reference=example.target,
                    output=str(output) if isinstance(example.target, str) else tuple(sorted(map(str, output))),
                )

        return self._evaluated(self.task, predict)

    def _scored(self, task: Task, bundle: Bundle) -> Judged:
        from fulltune.models.fast_kernels import fast_kernels
        from fulltune.models.modes import in_mode
        from fulltune.training.checkpoints.random_state import randomness_kept

        system = "tuned" if bundle.head == task.head else "zero_shot"
        with randomness_kept(), in_mode(bundle.model, training=False):  # noqa: SIM117 - kernels are entered last
            with pinned_kernels(self.config.speed.kernels), fast_kernels(bundle.model):
                return self._evaluated(task, task.predictor(bundle, system))

    def _evaluated(self, task: Task, predict: Callable[[Sequence[Example]], Iterator[Prediction]]) -> Judged:
        from fulltune.evaluation.evaluate import evaluate

        rows = list[Prediction]()
        examples = self._data.eval.examples
        with progress_of(self._progress).stage("judge", total=len(examples), unit="row") as bar:
            found = evaluate(predict, examples, task.metrics, system="judged", sink=rows.append, advance=bar.advance)
        answers = Answers(
            name="judged",
            rows=tuple(rows),
            metric=task.metrics[0].name,
            labels=task.labels,
            multi_label=task.multi_label,
        )
        return Judged(task.metrics[0].name, found.scores(self.config.evaluation), answers)


def _side(source: Any, name: str) -> Any:
    return replace(source.answers, name=name) if isinstance(source, Judged) else source


# ---- Labels ----


def _with_labels_of(task: Task, bundle: Bundle) -> Task:
    """Return the task with the labels of a classification head, in the order of its logits.

    Raises:
        DataError: The labels of the data are not those of the model, or the model does not name its own.
    """
    if bundle.head != "classification":
        return task
    names: dict[Any, Any] = bundle.model.config.id2label or {}
    stored = tuple(str(names[index]) for index in sorted(names))
    order = _order(task, stored)
    if order:
        return task.with_facts(replace(task.facts, labels=order))
    if not _is_numbered(stored):
        return task.adopt(bundle)  # raises: it names the labels that the model lacks
    raise DataError(
        f"the model has {len(stored)} classes without names (LABEL_0, …)",
        expected=f"the names of its classes, such as {', '.join(map(repr, task.labels[:3]))}",
        fix="set label_names to the labels in the order of the logits, or id2label of the model's config",
        field="label_names",
    )


def _order(task: Task, stored: Sequence[str]) -> tuple[str, ...]:
    """Return the labels in the order of the logits of a head with these classes; empty if it is not known."""
    own = set(task.labels)
    if own <= set(stored):
        return tuple(stored)
    if _is_numbered(stored) and task.config.data.label_names and len(task.labels) == len(stored):
        return task.labels
    numbers = tuple(map(str, range(len(stored))))
    return numbers if own <= set(numbers) else ()


def _is_numbered(stored: Sequence[str]) -> bool:
    return list(stored) == [f"LABEL_{index}" for index in range(len(stored))]
