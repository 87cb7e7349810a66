"""Read the rows of a proposal as a run reads them, and count what a run would refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fulltune.config import DataConfig
from fulltune.data.chats import MESSAGES
from fulltune.data.columns.roles import SPLITS
from fulltune.data.load import Column, Table, load_table
from fulltune.data.merging import combined, label_places, merged
from fulltune.data.overlap import Entry, Seen
from fulltune.data.read import open_source
from fulltune.data.sample import sampled
from fulltune.data.spellings import similar_groups, variants
from fulltune.data.split import input_text, split_table
from fulltune.errors import DataError, Problem
from fulltune.pipeline.proposal.settings import held_out, scored
from fulltune.pipeline.proposal.sources import Sources
from fulltune.records.run import FileFormat

#: Splits of a `datasets` folder by split of a config.
_STORED = {"train": "train", "valid": "validation", "eval": "test"}

#: Rows that a run can divide into train, valid and eval.
_FEWEST = 8

#: Rows of train that rows of eval are compared with; more take minutes.
_COMPARED = 20_000


@dataclass(frozen=True)
class Rows:
    """The rows of all splits.

    Attributes:
        tables: Rows by split: ``train``, and those of ``valid`` and ``eval`` that have files of their own.
        leaks: Rows of eval, of the first ones, that also occur in train with the same target.
        evaluated: Rows that decide, or would be held out for it.
        spellings: Sentences about labels that are written in several ways and stay as they are written.
    """

    tables: Mapping[str, Table]
    leaks: int
    evaluated: int
    spellings: tuple[str, ...] = ()

    @property
    def merged(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Labels that ``data.merge_labels`` merges: name → spelling → ids of its rows."""
        return combined([table.merged for table in self.tables.values()])

    @property
    def labels(self) -> Counter[str]:
        """Rows of train with each label, after merging."""
        return Counter({label: len(ids) for label, ids in label_places(self.tables["train"]).items()})

    @property
    def bad(self) -> tuple[Problem, ...]:
        """Problems of the rows that cannot be read."""
        return tuple(problem for table in self.tables.values() for problem in table.problems)

    @property
    def bad_count(self) -> int:
        """Number of the rows that cannot be read; one may have several problems."""
        return sum(len(table.bad_places) for table in self.tables.values())

    def values(self, role: str) -> list[str]:
        """Return the texts of a role in train; of chats, what precedes the answer."""
        if role == MESSAGES:
            return [input_text(row.fields) for row in self.tables["train"]]
        return [str(row.fields.get(role, "")) for row in self.tables["train"]]


def with_stored_splits(sources: Sources) -> Sources:
    """Return the sources with the other splits that the training source itself has.

    These are splits of a `datasets` folder, keys of a JSON file, or subfolders.
    """
    if sources.eval or sources.valid or not _has_split(sources.train, "train"):
        return sources
    if not _has_split(sources.train, "eval"):
        return sources
    return replace(sources, eval=sources.train, valid=sources.train if _has_split(sources.train, "valid") else ())


def _has_split(source: tuple[str, ...], name: str) -> bool:
    """Return True if a source has several parts, and one of them is this split."""
    try:
        first = next(iter(open_source(source, _STORED[name]).rows), None)
    except DataError:
        return False
    return isinstance(first, FileFormat) and first.part.lower() in SPLITS[name]


def read(sources: Mapping[str, tuple[str, ...]], settings: DataConfig, roles: Sequence[str]) -> Rows:
    """Read all splits.

    Args:
        sources: Files by split.
        settings: The names of the columns.
        roles: Roles that the task reads.

    Raises:
        DataError: A split has no usable row, or lacks a column.
    """
    columns = [
        Column(role, list if role in ("labels", MESSAGES) else str, may_be_empty=role in ("labels", "prompt"))
        for role in roles
    ]
    tables = {split: load_table(files, columns, settings, split=_STORED[split]) for split, files in sources.items()}
    tables |= _marked(sources["train"], settings, columns) if settings.split else {}
    train = merged(tables["train"])
    tables = {split: train if split == "train" else merged(table, train) for split, table in tables.items()}
    if len(train) < _FEWEST and "eval" not in tables:
        few = Problem(
            f"{len(train)} row{'s' * (len(train) != 1)}" + " that can be used" * bool(train.problems),
            f"at least {_FEWEST}, so that some can be held out",
            "add rows, divide long texts into several, or name a file with the rows that decide",
            train.source,
        )
        raise DataError([few, *train.problems])
    spellings = tuple(_spellings(list(tables.values())))
    if "eval" in tables:
        return Rows(tables, _leaks(train, tables["eval"]), len(tables["eval"]), spellings)
    if settings.group is None:  # near duplicates are held out together
        return Rows(tables, 0, max(1, round(held_out(len(train))[0] * len(train))), spellings)
    rest, decisive = _divided(train, roles, has_valid="valid" in tables)
    return Rows(tables, _leaks(rest, decisive), len(decisive), spellings)


def _divided(train: Table, roles: Sequence[str], *, has_valid: bool) -> tuple[Table, Table]:
    """Return the rows that a run trains on, and those that it holds out to decide."""
    stratify = next((role for role in ("label", "labels") if role in roles), None)
    evaluate, choose_by = held_out(len(train))
    spare = choose_by is not None and not has_valid
    rest, decisive = split_table(train, evaluate, groups="group", stratify=stratify, spare=spare)
    if choose_by is not None and not has_valid:
        rest, _ = split_table(rest, choose_by, groups="group", stratify=stratify, name="valid")
    return rest, decisive


def _spellings(tables: Sequence[Table]) -> Iterator[str]:
    """Yield a sentence for each label whose spellings differ in more than ``data.merge_labels`` merges."""
    ids = dict[str, list[str]]()
    for table in tables:
        for label, rows in label_places(table).items():
            ids.setdefault(label, []).extend(rows)
    for group in similar_groups(ids):
        yield f"one label in several spellings? {variants(group, ids)}: if so, write it in one way"


def _marked(files: tuple[str, ...], settings: DataConfig, columns: Sequence[Column]) -> dict[str, Table]:
    """Return the splits that a column marks, besides train; without rows of eval those of valid decide, as in a run."""
    tables = {
        split: load_table(files, columns, settings, split=_STORED[split], may_be_empty=True)
        for split in ("valid", "eval")
    }
    marked = {split: table for split, table in tables.items() if table.rows}
    return marked if "eval" in marked or not marked else {"eval": marked["valid"]}


def _leaks(train: Table, evaluation: Table) -> int:
    """Return the number of rows of eval that a run would report as leaks."""
    fields = train.rows[0].fields if train.rows else {}
    seen = Seen(has_answers=not {"label", "labels"} & fields.keys())
    for entry in _entries(train):
        seen.add(entry)
    decisive = sampled(evaluation, scored(len(evaluation)))
    matches = [match for entry in _entries(decisive) if (match := seen.match(entry))]
    return sum(match.same_target and not match.differs_in_numbers for match in matches)


def _entries(table: Table) -> list[Entry]:
    return [Entry.of(_Row.of(row.id, row.fields)) for row in table.rows[:_COMPARED]]


@dataclass(frozen=True)
class _Row:
    """A row for comparison: its input and its target."""

    id: str
    input: str
    target: str | tuple[str, ...]

    @classmethod
    def of(cls, name: str, fields: Mapping[str, Any]) -> _Row:
        for role in ("label", "labels", "target", "sql", "completion"):
            if role in fields:
                value = fields[role]
                return cls(name, input_text(fields), tuple(value) if isinstance(value, list) else str(value))
        return cls(name, "", input_text(fields))
