"""Prepare the data of a config as examples: load, split, and convert rows."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fulltune.config import Config, DataConfig, DataSource
from fulltune.data import tokens
from fulltune.data.audit import Audit, Finding, audit, token_findings
from fulltune.data.load import Row, Table, available_columns, load_table
from fulltune.data.merging import merged
from fulltune.data.sample import sampled
from fulltune.data.split import fold_tables, split_table
from fulltune.errors import ConfigError, DataError, Problem, did_you_mean
from fulltune.models.token_ids import IGNORED, end_ids, most_new_tokens
from fulltune.tasks.base import Column, Example, Features, Task
from fulltune.tasks.encoding import encode

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

_LOG = logging.getLogger(__name__)

#: The evaluation curve uses about this many rows, evenly spaced, so that it costs little compared with training.
CURVE_ROWS = 256

#: Names of the splits in a `datasets` folder or on the hub.
_SPLITS = {"eval": "test", "valid": "validation"}


@dataclass(frozen=True)
class Split:
    """Rows as read and examples as the task sees them, in the same order."""

    table: Table
    examples: tuple[Example, ...]

    def without(self, ids: Container[str]) -> Split:
        """Return the split with the examples of all other rows; the table is that of all rows."""
        return replace(self, examples=tuple(example for example in self.examples if example.id not in ids))


@dataclass(frozen=True)
class Data:
    """All splits.

    ``valid`` is used for the evaluation curve and the selection of the best step, never for the verdict. Without it,
    the curve uses ``eval``, and no step is selected. ``own_split`` is True if the rows of ``eval`` were held out of
    ``train``, not named or marked by the user.
    """

    train: Split
    eval: Split
    valid: Split | None
    own_split: bool = False

    @property
    def held_out(self) -> tuple[Example, ...]:
        """All rows that are not used for training: those of ``eval``, then those of ``valid``."""
        return self.eval.examples + (self.valid.examples if self.valid else ())

    @property
    def curve(self) -> Split:
        return self.valid or self.eval

    @property
    def shown(self) -> tuple[Example, ...]:
        """The rows of the evaluation curve."""
        return self.curve.examples[:: max(1, len(self.curve.examples) // CURVE_ROWS)]


def prepare(config: Config, task: Task) -> tuple[Task, Data]:
    """Load and split the data, and fit the task to it.

    Returns:
        The task with the facts it learned from the data, and the data.

    Raises:
        DataError: A file or column is missing, or rows contradict each other.
    """
    settings = config.data
    columns = task.columns(available_columns(settings.train, data=settings))
    _check_roles(settings, columns, task.name)
    every = load_table(settings.train, columns, settings, split="train")
    train = _merged(settings, _sampled(settings, every, "train"))
    marked = _marked(settings, columns, train)
    seed = config.train.seed if settings.seed is None else settings.seed
    if settings.folds is not None:
        train, evaluation = _folded(settings, settings.folds, seed, columns, train)
    else:
        train, evaluation = _given_or_held_out(settings, seed, settings.eval, columns, train, "eval", marked)
    valid = None
    if settings.valid is not None or "valid" in marked:
        train, valid = _given_or_held_out(settings, seed, settings.valid, columns, train, "valid", marked)
    skips = settings.bad_rows == "skip"
    splits = [_examples(task, table, skips) for table in (train, evaluation, valid) if table is not None]
    if skips:
        splits[0] = _usable(task, splits[0])
    own_split = settings.folds is not None or (isinstance(settings.eval, float) and "eval" not in marked)
    data = Data(splits[0], splits[1], splits[2] if valid is not None else None, own_split)
    return task.fit(data.train.examples, data.held_out).scoring(data.eval.examples), data


def audit_rows(config: Config, task: Task, data: Data) -> Audit:
    """Audit the rows themselves, before a model is loaded.

    Args:
        config: The config.
        task: The task, fitted to the data.
        data: All splits.
    """
    # Rows that are cross-validated are those of train; the audits of the folds compare them.
    evaluation = Split(replace(data.eval.table, rows=()), ()) if config.data.is_crossed else data.eval
    report = audit(
        train=data.train.table,
        evaluation=evaluation.table,
        valid=data.valid.table if data.valid else None,
        train_examples=data.train.examples,
        eval_examples=evaluation.examples,
        config=config,
        own_split=data.own_split,
    )
    splits = {"train": data.train.examples, "eval": data.eval.examples}
    splits |= {"valid": data.valid.examples} if data.valid else {}
    return report.extended(task.findings(splits))


def _check_roles(settings: DataConfig, columns: Sequence[Column], task: str) -> None:
    """Check that the task reads every role in ``data.columns``, and labels if they are merged.

    Raises:
        ConfigError: It does not read some of them.
    """
    known = [column.role for column in columns]
    if settings.merge_labels and _stratified(columns) is None:
        raise ConfigError(f"{task} reads no labels", fix="remove it", field="data.merge_labels")
    problems = [
        Problem(
            f"{task} reads no column with the role {role!r}",
            f"some of {', '.join(known)}",
            did_you_mean(role, known) or "remove it",
            field=DataConfig.column_key(role),
        )
        for role in settings.columns
        if role not in known
    ]
    if problems:
        raise ConfigError(problems)


def inspect(
    config: Config, task: Task, data: Data, bundle: Bundle, rows: Audit, out: Path | None = None
) -> tuple[Audit, list[Features], list[Features]]:
    """Audit the data as the model reads it, and encode it once.

    Args:
        config: The config.
        task: The task.
        data: All splits.
        bundle: Model and tokenizer.
        rows: The audit of the rows, to which this one is added.
        out: Folder in which sequences of large data are cached.

    Returns:
        The audit, the training sequences, and the sequences of the evaluation curve.
    """
    examples = [*data.train.examples, *data.eval.examples]
    # Keyed by identity: rows of two splits may have the same id.
    encoded = dict(zip(map(id, examples), encode(task, examples, bundle, out), strict=True))
    findings = token_findings(
        {"train": data.train.examples, "eval": data.eval.examples},
        config.data,
        generated=task.head == "lm",
        encode=lambda example: encoded[id(example)],
        tokenizer=bundle.tokenizer,
        positions=bundle.window,
    )
    evaluation = [(example.id, encoded[id(example)]) for example in data.eval.examples]
    limits = _limits(config.data, config.evaluation.max_new_tokens, task, bundle, evaluation)
    report = rows.extended([*findings, *limits, *_assumed_language(bundle)])
    curve = [features for example in data.shown for features in task.encode(example, bundle)]
    return report, [features for example in data.train.examples for features in encoded[id(example)]], curve


def _limits(
    data: DataConfig, new_tokens: int, task: Task, bundle: Bundle, rows: Sequence[tuple[str, Sequence[Features]]]
) -> Iterator[Finding]:
    """Yield findings about limits in the config that exceed the model's, given ids and sequences of evaluation rows."""
    yield from tokens.window_finding("data.max_length", data.max_length or 0, bundle.window)
    if task.head != "lm":
        return
    if bundle.family == "encoder-decoder":
        limit = bundle.answer_window
        yield from tokens.window_finding("data.max_target_length", data.max_target_length, limit)
        yield from tokens.window_finding("evaluation.max_new_tokens", new_tokens, limit)
        return
    ends = set(end_ids(bundle))
    lone = [row for row, sequences in rows if _has_only_ends(sequences, ends)]
    yield from tokens.lone_token_finding("eval", lone, len(rows))
    left = [most_new_tokens(bundle, _prompt_length(sequences)) for _, sequences in rows]
    ids = [row for row, _ in rows]
    yield from tokens.short_answer_finding("eval", ids, left, new_tokens)


def _assumed_language(bundle: Bundle) -> Iterator[Finding]:
    """Yield a finding if neither the config nor the checkpoint defines the language of the answers."""
    from fulltune.models.languages import ASSUMED

    for sentence in bundle.info.reconciled:
        if sentence.startswith(ASSUMED):
            yield Finding(kind="language", level="warning", message=sentence, fix="set data.target_language")


def _has_only_ends(sequences: Sequence[Features], ends: set[int]) -> bool:
    """Return True if a row has targets, and all of them are end tokens."""
    targets = set[int]().union(*map(_targets, sequences))
    return bool(targets) and targets <= ends


def _targets(sequence: Features) -> set[int]:
    """Return the token ids of a sequence that a decoder is trained to predict."""
    assert isinstance(sequence.labels, list)
    return {int(label) for label in sequence.labels if label != IGNORED}


def _prompt_length(sequences: Sequence[Features]) -> int:
    """Return the number of tokens of a decoder's first sequence before the first target."""
    labels = sequences[0].labels if sequences else []
    assert isinstance(labels, list)
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))


def _marked(data: DataConfig, columns: Sequence[Column], train: Table) -> dict[str, Table]:
    """Return the rows of ``data.train`` that its split column marks as ``eval`` or ``valid``.

    Without rows of ``eval``, those of ``valid`` decide.
    """
    if data.split is None:
        return {}
    tables = {
        name: _merged(
            data, _sampled(data, load_table(data.train, columns, data, split=split, may_be_empty=True), name), train
        )
        for name, split in _SPLITS.items()
        if not isinstance(getattr(data, name), str | tuple)
    }
    # A row that cannot be parsed has no split: it is one of train.
    known = set(train.problems)
    marked = {
        name: replace(table, problems=tuple(problem for problem in table.problems if problem not in known))
        for name, table in tables.items()
        if table.rows
    }
    if isinstance(data.eval, float) and "eval" not in marked and "valid" in marked:
        _LOG.info("the column %r marks no row as test: the validation rows decide", data.split)
        marked["eval"] = marked.pop("valid")
    return marked


def _sampled(data: DataConfig, table: Table, name: str) -> Table:
    """Return the rows of a split that the config allows, the same whatever ``train.seed`` is."""
    limits = {"train": data.limit, "eval": data.eval_limit}
    return sampled(table, limits.get(name), data.seed or 0)


def _given_or_held_out(
    data: DataConfig,
    seed: int,
    given: DataSource | float | None,
    columns: Sequence[Column],
    train: Table,
    name: str,
    marked: Mapping[str, Table],
) -> tuple[Table, Table]:
    """Return train and a named or marked split, or train without a fraction and that held-out fraction.

    Rows are held out by group, by default by clusters of near duplicates, stratified by label.
    """
    if isinstance(given, str | tuple):
        return train, _merged(data, _sampled(data, load_table(given, columns, data, split=_SPLITS[name]), name), train)
    if name in marked:
        return train, marked[name]
    assert given is not None
    groups = "group" if data.group else None
    spare = name == "eval" and isinstance(data.valid, float)
    rest, held_out = split_table(
        train, given, groups=groups, stratify=_stratified(columns), seed=seed, name=name, spare=spare
    )
    return rest, _sampled(data, held_out, name)


def _folded(data: DataConfig, folds: int, seed: int, columns: Sequence[Column], train: Table) -> tuple[Table, Table]:
    """Return train and eval of a fold, or all rows and those that some fold evaluates."""
    groups = "group" if data.group else None
    pairs = fold_tables(train, folds, groups=groups, stratify=_stratified(columns), seed=seed)
    if data.fold is not None:
        return pairs[data.fold - 1]
    evaluated = {row.id for _, fold in pairs for row in fold}
    rows = tuple(row for row in train if row.id in evaluated)
    source = f"{folds} folds of {train.source}"
    return train, replace(train, source=source, rows=rows, problems=(), line_ends=0, merged={})


def _merged(data: DataConfig, table: Table, train: Table | None = None) -> Table:
    """Return a table whose labels are merged if the config asks for it, under the names that train has."""
    return merged(table, train, data.label_names or ()) if data.merge_labels else table


def _stratified(columns: Sequence[Column]) -> str | None:
    """Return the role of the labels, if there are any."""
    return next((column.role for column in columns if column.role in ("label", "labels")), None)


def _examples(task: Task, table: Table, skips: bool) -> Split:
    """Return the rows as the task sees them; those that it refuses are left out if the config skips bad rows.

    Raises:
        DataError: The task refuses rows.
    """
    examples, rows = list[Example](), list[Row]()
    problems = list[Problem]()
    for row in table:
        try:
            example, group = task.example(row), str(row.fields.get("group") or "")
            examples.append(replace(example, group=group, part=group or example.part or row.folder))
            rows.append(row)
        except DataError as error:
            problems += [_placed(problem, row) for problem in error.problems]
    if problems and not (skips and rows):
        raise DataError(problems)
    return Split(replace(table, rows=tuple(rows), problems=(*table.problems, *problems)), tuple(examples))


def _usable(task: Task, train: Split) -> Split:
    """Return train without the rows that the task cannot use; they are among its problems."""
    bad = task.unusable(train.examples)
    if not bad:
        return train
    problems = tuple(_placed(bad[row.id], row) for row in train.table if row.id in bad)
    kept = tuple(row for row in train.table if row.id not in bad)
    if not kept:
        raise DataError(problems)
    table = replace(train.table, rows=kept, problems=(*train.table.problems, *problems))
    return replace(train.without(bad), table=table)


def _placed(problem: Problem, row: Row) -> Problem:
    return Problem(problem.found, problem.expected, problem.fix, problem.where or row.where, problem.field)
