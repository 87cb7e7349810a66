"""``fulltune init``: read the data, infer task, columns, model and settings, and write a commented config."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fulltune.config import DataConfig, TrainConfig, load_config
from fulltune.data.chats import MESSAGES, complete_text
from fulltune.data.columns import roles
from fulltune.data.columns.profile import Profile
from fulltune.data.columns.sampled import columns_of
from fulltune.data.findings import rows
from fulltune.data.locate import locate
from fulltune.data.merging import merge_phrases
from fulltune.data.overlap import TOLERATED_LEAKS
from fulltune.data.read import source_name
from fulltune.errors import ConfigError, DataError, Problem
from fulltune.pipeline.proposal import base_models, settings
from fulltune.pipeline.proposal import rows as reading
from fulltune.pipeline.proposal.base_models import BaseModel
from fulltune.pipeline.proposal.choose import Choice, choose, narrowed
from fulltune.pipeline.proposal.config_text import Line, Section, reasons, to_mapping, to_text
from fulltune.pipeline.proposal.language import language_of, texts_by_language
from fulltune.pipeline.proposal.queries import Queries
from fulltune.pipeline.proposal.sources import Sources, missing_database, sort_sources
from fulltune.records.run import FileFormat, Model
from fulltune.runtime import paths
from fulltune.runtime.files import advising, atomic_text, store_errors
from fulltune.runtime.rows_file import paths_of
from fulltune.training import defaults
from fulltune.training.advice import usual_rates
from fulltune.training.arguments import total_steps

_FAMILIES: Mapping[str, base_models.Family] = {
    "classification": "encoder",
    "causal-lm": "decoder",
    "seq2seq": "encoder-decoder",
    "text2sql": "encoder-decoder",
}

#: Tokens that the training of a small model reads at most, so that a first run takes minutes on two cores.
_TOKENS = 2_000_000

#: Tokens per word from which a tokenizer does not suit a language; it is 1.2 to 2 where it does.
_MANY_TOKENS = 2.5

#: Notes of one kind.
_SHOWN = 3

#: Window in tokens of models whose positions are not limited.
_WINDOW = 512


class SeenColumn(Model):
    """A column of the data: the kind of its values, how many are distinct, an example, and the role it was given."""

    name: str
    kind: str
    rows: int
    distinct: int
    example: str
    role: str = ""


class Proposal(Model):
    """A proposed config, and what it was inferred from.

    Attributes:
        file: Path of the written config.
        config: The config as a mapping.
        why: The explanation of each key that is set.
        rows: Number of usable rows by split.
        bad_rows: Number of rows that cannot be read.
        language: Language of most texts, or an empty text.
        languages: Number of texts in each language, if they have several; of 500 texts at most.
        read: Number and format of the rows, in a few words.
        columns: The columns of the data.
        warnings: Likely faults of the data; one sentence each.
        notes: Other possible choices, and points to check; one sentence each.
        next: Commands to run next.
    """

    file: str
    config: dict[str, Any]
    why: dict[str, str]
    rows: dict[str, int]
    bad_rows: int
    language: str
    languages: dict[str, int]
    read: str
    columns: tuple[SeenColumn, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    next: tuple[str, ...]

    @property
    def task(self) -> str:
        return str(self.config["task"])

    @property
    def model(self) -> str:
        return str(self.config["model"])


def init(
    data: Any,
    *,
    task: str | None = None,
    model: str | None = None,
    text: str | None = None,
    label: str | None = None,
    output: str | Path = "config.yaml",
    force: bool = False,
) -> Proposal:
    """Infer a config from data and write it, with an explanation on every line.

    Args:
        data: A file, a folder or a pattern, a list of these, or rows in memory (a data frame, a list of dicts). Files
            are assigned to splits by their names; SQLite databases are recognized.
        task: The task; inferred by default.
        model: The base model; by default one that is on this machine.
        text: The column with the texts; inferred by default.
        label: The column with the labels; inferred by default.
        output: Path of the config.
        force: Replace an existing file.

    Returns:
        The config and what it was inferred from.

    Raises:
        ConfigError: The file exists, or there is no such task or column.
        DataError: The data cannot be read, or its columns fit no task; lists what each column holds.
    """
    file = Path(output)
    names = paths_of(data, "data")
    _check_names(names, file, force)
    sources = reading.with_stored_splits(sort_sources(names))
    columns = columns_of(sources.train)
    named = {role: column for role, column in (("text", text), ("label", label)) if column is not None}
    if "label" in named and task not in (None, "classification"):
        raise ConfigError(f"a label for the task {task}", expected="--task classification", field="--label")
    asked = "classification" if "label" in named else task
    choice = choose(narrowed(columns, named), asked, sources.databases)
    draft = _Draft.of(sources, columns, choice, model, file)
    sections = draft.sections()
    mapping = to_mapping(sections)
    load_config(mapping)  # what is written must be valid
    with advising("choose another file with --output"), store_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_text(file, to_text(draft.title(), sections))
    return draft.proposal(mapping, reasons(sections))


def _check_names(names: Sequence[str], file: Path, force: bool) -> None:
    """Check that the data exists and the config may be written.

    Raises:
        ConfigError: The config must not be written; lists missing files too.
        DataError: Files are missing.
    """
    refused, missing = list[Problem](), list[Problem]()
    try:
        _check_output(file, force)
    except ConfigError as error:
        refused += error.problems
    for name in names:
        absent = missing_database(name, names)
        if absent is not None:
            missing.append(absent)
            continue
        try:
            if not paths.matches(name):
                locate(name)
        except DataError as error:
            missing += error.problems
    if refused:
        raise ConfigError([*refused, *missing])
    if missing:
        raise DataError(missing)


def _check_output(file: Path, force: bool) -> None:
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(
            f"{str(file)!r}", expected="a file that ends in .yaml", fix="JSON has no comments", field="--output"
        )
    if paths.is_folder(file):
        fix = "name a file in it, or another one, with --output"
        raise ConfigError("this is a folder", expected="a new file", where=str(file), fix=fix)
    if paths.exists(file) and not force:
        fix = "choose another name with --output, or add --force to replace it"
        raise ConfigError("this file exists already", expected="a new file", where=str(file), fix=fix)


@dataclass(frozen=True)
class _Draft:
    """All that was inferred; ``written`` has the ids of the first texts in each language."""

    sources: Sources
    columns: Sequence[Profile]
    choice: Choice
    group: Profile | None
    marks: Profile | None
    rows: reading.Rows
    base: BaseModel
    language: str
    languages: Mapping[str, int]
    written: Mapping[str, Sequence[str]]
    counts: Sequence[int]
    answers: Sequence[int]
    file: Path

    @classmethod
    def of(cls, sources: Sources, columns: Sequence[Profile], choice: Choice, model: str | None, file: Path) -> _Draft:
        is_split = bool(sources.valid and sources.eval) or choice.task == "text2sql"
        group = None if is_split else roles.group(columns, choice.used)
        named: dict[str, Any] = {role: column.name for role, column in choice.columns.items()}
        marks = None if sources.valid or sources.eval else roles.split_column(columns)
        named |= {"group": group.name} if group else {}
        named |= {"split": marks.name} if marks else {}
        named |= {"label_separator": choice.separator} if choice.separator else {}
        named |= {"label_names": list(choice.names)} if choice.names else {}
        config = DataConfig(train=sources.train, **named)
        rows = reading.read(sources.splits(), config, list(choice.columns))
        choice = _counted(choice, rows)
        inputs = rows.values(next(iter(choice.columns)))
        found = texts_by_language(inputs)
        languages = {one: len(numbers) for one, numbers in found.items()}
        written = {one: tuple(rows.tables["train"][row].id for row in found[one][:_SHOWN]) for one in found}
        language = next(iter(languages), "") or language_of(inputs)
        family = _FAMILIES[choice.task]
        base = base_models.with_name(model, family) if model else base_models.choose(family, language)
        counts, answers = _counts(choice, rows, base)
        return cls(
            sources,
            columns,
            choice,
            group,
            marks,
            rows,
            base,
            language,
            languages,
            written,
            counts,
            answers,
            file,
        )

    @property
    def _scored(self) -> int:
        return settings.scored(self.rows.evaluated)

    @property
    def _has_many_leaks(self) -> bool:
        """True if rows of eval that the user names are also in train, more than a run tolerates."""
        return "eval" in self.rows.tables and self.rows.leaks > TOLERATED_LEAKS * self._scored

    def title(self) -> list[str]:
        languages = languages_in_words(self.language, self.languages)
        return [
            f"Written by `fulltune init`: {self.choice.task}, because {self.choice.because}.",
            f"Read: {self._read()}" + (f", in {languages}." if languages else "."),
            f"Start with `fulltune plan {self.file}`, then `fulltune run {self.file}`. All keys: docs/config.md.",
        ]

    @property
    def _unknown(self) -> list[str]:
        """Languages of texts that the base was not pretrained on."""
        return [one for one in self.languages or (self.language,) if one and not self.base.suits(one)]

    def _read(self) -> str:
        """Return how many rows were read, and how."""
        train = self.rows.tables["train"]
        names = self.sources.train
        named = source_name(names[0]) if len(names) == 1 else f"{len(names)} files"
        kinds = dict.fromkeys(_format(one) for one in train.files if not one.is_unread)
        return f"{len(train):,} rows of {named}" + (f" ({'; '.join(kinds)})" if kinds else "")

    def sections(self) -> list[Section]:
        return [
            Section("", self._model()),
            Section("data", [*self._splits(), *self._reading(), *self._columns(), *self._lengths()]),
            Section("train", self._training()),
            Section("regularize", self._regularization()),
            Section("evaluation", self._evaluation()),
            Section("guards", self._guards()),
        ]

    def _model(self) -> list[Line]:
        base = self.base
        described = f"{base.note}, {base.size}" if base.note else base.size
        trained = f", pretrained on {' and '.join(base.languages)}" if base.languages else ""
        gap = f", not on {' and '.join(self._unknown)}" if self._unknown else ""
        lines = [Line("model", base.name, f"{described}{trained}{gap}")]
        other = base_models.alternative(base.family, self.language)
        if other is not None and other.name != base.name:
            of = f" for {self.language}" if other.languages and self.language else ", for many languages"
            rate = _rate(defaults.learning_rate(other.kind))
            why = f"larger{of}, from the hub ({other.size}); train.learning_rate: {rate}"
            lines.append(Line("model", other.name, why, active=False))
        return [*lines, Line("task", self.choice.task, self.choice.because)]

    def _splits(self) -> list[Line]:
        sources, tables = self.sources, self.rows.tables
        evaluate, choose_by = settings.held_out(len(tables["train"]))
        lines = [Line("train", self._source(sources.train), f"{len(tables['train']):,} rows")]
        if self.marks:
            counts = ", ".join(f"{len(table):,} of {split}" for split, table in tables.items())
            lines.append(Line("split", self.marks.name, f"this column marks the rows: {counts}"))
        kept = f"; rows of one {self.group.name} stay together" if self.group else "; near duplicates stay together"
        if sources.valid:
            why = f"{len(tables['valid']):,} rows; they choose the best step"
            lines.append(Line("valid", self._source(sources.valid), why))
        elif choose_by and "valid" not in tables:
            lines.append(Line("valid", choose_by, f"{choose_by:.0%} of the rows are held out to choose the best step"))
        if sources.eval:
            why = f"{len(tables['eval']):,} rows; they decide, and choose nothing"
            lines.append(Line("eval", self._source(sources.eval), why))
        elif "eval" not in tables:
            lines.append(Line("eval", evaluate, f"{evaluate:.0%} of the rows are held out and decide{kept}"))
            if len(tables["train"]) <= settings.CROSSED_ROWS and "valid" not in tables:
                why = "instead of eval, for so few rows: each is answered by a model trained on the other folds"
                lines.append(Line("folds", settings.FOLDS, why, active=False))
        if self._scored < self.rows.evaluated:
            why = f"score {self._scored} of {self.rows.evaluated:,} rows, so that baselines take minutes"
            lines.append(Line("eval_limit", self._scored, why))
        lines += self._skipping()
        if self._has_many_leaks:
            why = f"{self.rows.leaks:,} of these rows are also in train; the report scores without them too"
            lines.append(Line("allow_leaks", True, why))
        return lines

    def _skipping(self) -> list[Line]:
        """Return that rows are left out if some cannot be used."""
        why = ""
        if self.rows.bad:
            why = f"{rows(self.rows.bad_count)} that cannot be used: left out, such as {self.rows.bad[0]}"
        elif self._tested is not None and self._tested.can_be_skipped:
            found = self._tested.check
            why = f"{len(found.failed):,} of {found.run:,} queries cannot be run: left out of train"
        return [Line("bad_rows", "skip", why)] if why else []

    def _reading(self) -> list[Line]:
        """Return the encoding and the delimiter if they are unusual, so that they can be corrected."""
        files = [one for table in self.rows.tables.values() for one in table.files if not one.is_unread]
        lines = []
        encodings = {one.encoding for one in files} - {"", "utf-8", "ascii"}
        if encodings and len({one.encoding for one in files}) == 1:
            lines.append(Line("encoding", encodings.pop(), "inferred by the letters; auto infers it for each file"))
        elif encodings:
            lines.append(Line("encoding", "auto", f"files have several: utf-8, {', '.join(sorted(encodings))}"))
        delimiters = {one.delimiter for one in files if one.format == "csv"}
        if len(delimiters) == 1 and not delimiters & {"", ","}:
            lines.append(Line("delimiter", delimiters.pop(), "inferred: the character between the cells"))
        return lines

    def _columns(self) -> list[Line]:
        lines = [Line(role, column.name, self._described(role)) for role, column in self.choice.columns.items()]
        if self.rows.merged:
            lines.append(Line("merge_labels", True, self._merges()))
        if self.choice.separator:
            lines.append(Line("label_separator", self.choice.separator, "between the labels of one cell"))
        if self.choice.names:
            lines.append(Line("label_names", list(self.choice.names), "write the names of the classes, in this order"))
        if self.group:
            why = f"{self.group.distinct:,} values; a split never divides the rows of one"
            lines.append(Line("group", self.group.name, why))
        return lines + (self._databases() if self.choice.task == "text2sql" else [])

    def _described(self, role: str) -> str:
        column = self.choice.columns[role]
        if not self.rows.merged or role not in ("label", "labels"):
            return _described(column)
        counts = self.rows.labels.most_common()
        return _labels([label for label, _ in counts], [count for _, count in counts], len(counts))

    def _merges(self) -> str:
        """Return which spellings are one label; double blanks are escaped, because comments collapse them."""
        pairs = [
            f"{', '.join(repr(label) for label in written if label != name)} = {name!r}"
            for name, written in self.rows.merged.items()
        ]
        listed = "; ".join(pairs).replace("  ", r" \x20")
        return f"one label in several spellings: {listed}. Remove this line if they mean different things"

    def _databases(self) -> list[Line]:
        databases = self.sources.databases
        if "db_id" not in self.choice.columns:
            line = Line("databases", self._path(databases[0]), "the database that all queries are run on")
        else:
            folder = os.path.commonpath([path.parent for path in databases])
            line = Line("databases", self._path(Path(folder)), "folder of the SQLite files that db_id names")
        return [line, self._schema()]

    def _schema(self) -> Line:
        """Return what prompts show of the schema."""
        if not self._hides_schema:
            return Line("schema_in_prompt", "full", "tables, columns, types and keys; names is shorter")
        why = (
            "the schema is the same in all rows and far longer than a question; this base has to learn tables and "
            "queries from train anyway, and steps without the schema are cheaper. full: to ask about tables that no "
            "query of train uses, or with a base that knows SQL"
        )
        return Line("schema_in_prompt", "none", why)

    @property
    def _hides_schema(self) -> bool:
        """True for queries on one database, and a base that has to learn them from the rows anyway."""
        named = self.choice.columns.get("db_id")
        is_single = named is None or named.distinct == 1
        return self.choice.task == "text2sql" and is_single and self.base.has_to_learn_sql

    @property
    def _window(self) -> int:
        """Tokens that the model is given of a text at most."""
        return settings.lengths(self.counts).window(self.base.window or _WINDOW)

    @property
    def _divides(self) -> bool:
        """True if texts that are longer than the window are divided into several training sequences."""
        return self.choice.task == "causal-lm" and "text" in self.choice.columns

    @property
    def _chooses(self) -> bool:
        """True if rows are held out, or given, that choose the best step."""
        _, choose_by = settings.held_out(len(self.rows.tables["train"]))
        return bool("valid" in self.rows.tables or choose_by)

    @property
    def _cut(self) -> float:
        """Fraction of the texts that are longer."""
        return sum(count > self._window for count in self.counts) / len(self.counts)

    def _lengths(self) -> list[Line]:
        if self.choice.task == "text2sql":
            why = "tokens of schema and question; longer schemas are cut"
            if self._hides_schema:
                why = "tokens of the question; longer ones are cut"
            return [Line("max_length", 512, why), self._target_length()]
        lengths, window = settings.lengths(self.counts), self._window
        if self._divides:
            why = f"tokens per window; longer texts are divided (median {lengths.median:,})"
            return [Line("max_length", window, why)]
        ending = f"; {self._cut:.1%} of the texts are cut" if self._cut else "; no text is cut"
        ending += f": the model reads at most {window:,}" if self._cut and window == self.base.window else ""
        lines = [Line("max_length", window, f"tokens; the median is {lengths.median:,}{ending}")]
        return lines + ([self._target_length()] if self.choice.task == "seq2seq" else [])

    def _target_length(self) -> Line:
        lengths = settings.lengths(self.answers)
        why = f"tokens of an answer; the median is {lengths.median:,}"
        return Line("max_target_length", lengths.window(None, 16), why)

    def _training(self) -> list[Line]:
        rows = self._trained_rows()
        batch = settings.BATCHES[self.choice.task]
        tokens = rows * (sum(self.counts) + sum(self.answers)) / max(1, len(self.counts))
        is_new = self._hides_schema and self.base.is_small
        sequences = round(rows * settings.count_windows(self.counts, self._window)) if self._divides else rows
        wanted = defaults.epochs(self.base.kind, math.ceil(sequences / batch), is_new_language=is_new)
        epochs = max(2, min(wanted, int(_TOKENS / max(1.0, tokens))))
        steps = total_steps(TrainConfig(epochs=epochs, batch_size=batch), sequences)
        of = f" of {sequences:,} windows" if sequences > rows else ""
        time = ", a few minutes on two cores" if is_new else ""
        kept = "the best step is kept" if self._chooses else "the last step is kept: no rows are spared to choose one"
        return [
            Line("epochs", epochs, f"passes over train{of}, about {steps:,} steps{time}; {kept}"),
            Line("batch_size", batch, f"{'windows' if self._divides else 'rows'} per step; 4 to 32 is usual"),
            Line("learning_rate", defaults.learning_rate(self.base.kind), self._usual_rates()),
            Line("scheduler", "cosine", "the rate falls to zero along a cosine"),
            *([Line("weight_decay", 0, "it would pull to zero, against regularize.l2_sp")] if self.base.l2_sp else []),
            Line("warmup", 0.06, "fraction of the steps in which the rate rises"),
            Line("seeds", 3, "trainings that differ in their seed; their mean is judged", active=False),
        ]

    def _regularization(self) -> list[Line]:
        """Return what keeps the general text of a small base; at usual rates it forgets more than the budget."""
        if not self.base.l2_sp:
            return []
        why = "pulls the weights towards the base, which keeps its general text; without it, this base forgets too much"
        return [Line("l2_sp", self.base.l2_sp, why)]

    def _usual_rates(self) -> str:
        base = self.base
        if not base.parameters:
            return "usual; models under 50M parameters take more"
        low, high = usual_rates(base.parameters, is_encoder_decoder=base.family == "encoder-decoder")
        return f"{low:g} to {high:g} is usual for {base.size}"

    def _trained_rows(self) -> int:
        """Return about how many rows of train are left once those that decide and choose are held out."""
        tables = self.rows.tables
        evaluate, choose_by = settings.held_out(len(tables["train"]))
        rows: float = len(tables["train"])
        rows *= 1 if "eval" in tables else 1 - evaluate
        rows *= 1 if "valid" in tables else 1 - (choose_by or 0)  # of the rows that eval leaves, as in a run
        return max(1, round(rows))

    def _evaluation(self) -> list[Line]:
        if self.choice.task == "causal-lm":
            return [Line("continuations", 4, "texts that are continued before and after training, to read them")]
        if self.choice.task in ("seq2seq", "text2sql"):
            limit = settings.lengths(self.answers).window(None, 16)
            return [Line("max_new_tokens", limit, "longest answer in tokens; 99% of the answers in train are shorter")]
        return []

    def _guards(self) -> list[Line]:
        """Return that general text is only reported if the model writes nothing but queries."""
        answer = next((self.choice.columns[role] for role in ("sql", "target") if role in self.choice.columns), None)
        if answer is None or answer.kind != "SQL":
            return []
        why = (
            "general text is measured and reported, but blocks nothing: this model writes nothing but SQL. With "
            "keep: [en] English may lose at most guards.forgetting.budget (5%)"
        )
        return [Line("forgetting", {"keep": []}, why)]

    def proposal(self, mapping: dict[str, Any], why: Mapping[str, str]) -> Proposal:
        role_of = {column.name: role for role, column in self.choice.columns.items()}
        role_of |= {self.group.name: "group"} if self.group else {}
        role_of |= {self.marks.name: "split"} if self.marks else {}
        return Proposal(
            file=str(self.file),
            config=mapping,
            why=dict(why),
            rows={split: len(table) for split, table in self.rows.tables.items()},
            bad_rows=self.rows.bad_count,
            language=self.language,
            languages=dict(self.languages),
            read=self._read(),
            columns=tuple(SeenColumn(**one.to_dict(), role=role_of.get(one.name, "")) for one in self.columns),
            warnings=tuple(self._warnings()),
            notes=tuple(self._notes()),
            next=(f"fulltune plan {_quoted(self.file)}", f"fulltune run {_quoted(self.file)}"),
        )

    def _warnings(self) -> list[str]:
        phrases = merge_phrases(self.rows.merged)
        shown = phrases[:_SHOWN] + ([f"{len(phrases) - _SHOWN} more"] if len(phrases) > _SHOWN else [])
        merges = f"labels are spelled in several ways; data.merge_labels is set and merges {', and '.join(shown)}"
        return [*([merges] if phrases else []), *self.rows.spellings[:_SHOWN]]

    def _notes(self) -> list[str]:
        notes = [*self.choice.notes, *self._queries()]
        if self.rows.bad:
            notes.append(f"{rows(self.rows.bad_count, 'be')} left out (data.bad_rows), such as {self.rows.bad[0]}")
        if self.rows.leaks:
            done = "data.allow_leaks is set" if self._has_many_leaks else "they are left out of the scores"
            notes.append(f"{self.rows.leaks:,} of {self._scored:,} rows of eval are also in train: {done}")
        notes += self._unsuited_tokenizer()
        if "text" in self.choice.columns and self.choice.task == "causal-lm":
            limit = base_models.writing_limit(self.base.parameters, self.language)
            notes += [limit.rstrip(".")] if limit else []
        if self.languages and self._unknown:
            of = f"{sum(self.languages[one] for one in self._unknown)} of {sum(self.languages.values())} texts"
            named = "; ".join(f"{one}, such as {', '.join(self.written[one])}" for one in self._unknown)
            notes.append(f"{of} are in languages that {self.base.name} was not pretrained on: {named}")
        assumed = [
            (one.file, text) for table in self.rows.tables.values() for one in table.files for text in one.assumed
        ]
        notes += [f"{file}: {text}" for file, text in assumed[:_SHOWN]]
        notes += [f"{len(assumed) - _SHOWN} more assumptions about files"] if len(assumed) > _SHOWN else []
        notes += [f"another data set there: fulltune init {other}" for other in self.sources.others[:_SHOWN]]
        return notes

    def _unsuited_tokenizer(self) -> list[str]:
        """Return a note if the tokenizer of the model divides the words of the language into many tokens."""
        if self.base.suits(self.language) or self.base.tokenizer_file is None or not self.language:
            return []
        texts = self.rows.values(next(iter(self.choice.columns)))[: len(self.counts)]
        words, tokens = sum(len(text.split()) for text in texts), sum(self.counts)
        if tokens < _MANY_TOKENS * words:
            return []
        is_cut = self._window == self.base.window and self.choice.task in ("classification", "seq2seq")
        cut = f", and {self._cut:.1%} of the texts are cut" if is_cut and self._cut else ""
        return [
            f"{tokens / words:.1f} tokens per word{cut}: the tokenizer of {self.base.name} was not made for "
            f"{self.language}; a model for this language reads more of each text"
        ]

    def _queries(self) -> list[str]:
        """Return what the databases hold, and how many queries run on them."""
        return [] if self._tested is None else self._tested.sentences()

    @cached_property
    def _tested(self) -> Queries | None:
        if self.choice.task != "text2sql":
            return None
        rows = [row for table in self.rows.tables.values() for row in table]
        return Queries(rows, {path.stem: path for path in self.sources.databases})

    def _source(self, names: tuple[str, ...]) -> Any:
        written = [self._path(Path(name)) if paths.exists(name) else name for name in names]
        return written[0] if len(written) == 1 else written

    def _path(self, path: Path) -> str:
        """Return a path as the config names it: relative to the folder of the config, unless it is absolute."""
        if path.is_absolute():
            return str(path)
        return Path(os.path.relpath(path, self.file.parent)).as_posix()


def languages_in_words(language: str, languages: Mapping[str, int]) -> str:
    """Return e.g. ``Russian 81, Czech 11, English 10``, or the language of all."""
    return ", ".join(f"{name} {count}" for name, count in languages.items()) or language


def _counted(choice: Choice, rows: reading.Rows) -> Choice:
    """Return the choice with the number of labels after merging as its reason."""
    label = choice.columns.get("label") or choice.columns.get("labels")
    if label is None or not rows.merged:
        return choice
    because = f"`{label.name}` has {len(rows.labels):,} values in {label.filled:,} rows, if spellings are merged"
    because += ", several of them per row" if "labels" in choice.columns else ""
    return replace(choice, because=because)


def _format(form: FileFormat) -> str:
    """Return how a file was read, in a few words."""
    delimiter = {"\t": "tabs", "": ""}.get(form.delimiter, f"`{form.delimiter}`")
    between = f" with {delimiter} between cells" if delimiter else ""
    encoding = f", {form.encoding}" if form.encoding else ""
    part = f", part {form.part}" if form.part else ""
    known = {"csv": "CSV", "json": "JSON"}.get(form.format, form.format)
    return f"{known}{between}{encoding}{part}"


def _counts(choice: Choice, rows: reading.Rows, base: BaseModel) -> tuple[Sequence[int], Sequence[int]]:
    """Return the tokens of each row that share a window, and those of answers that have a window of their own."""
    role = next(iter(choice.columns))
    texts = rows.values(role)
    if role == MESSAGES:
        texts = [complete_text(row.fields) for row in rows.tables["train"]]
    inputs = settings.count_tokens(texts, base)
    role = next((role for role in ("target", "sql") if role in choice.columns), "completion")
    if role == "completion" and not {"completion", MESSAGES} & choice.columns.keys():
        return inputs, ()
    answers = settings.count_tokens(rows.values(role), base)
    if choice.task != "causal-lm":
        return inputs, answers
    return [settings.shared(*pair) for pair in zip(inputs, answers, strict=True)], ()


def _described(column: Profile) -> str:
    if column.kind in ("category", "labels"):
        return _labels(column.examples, column.counts, column.distinct)
    if column.kind == "messages":
        return "turns with a role and a text; the last one of the assistant is the completion"
    if column.kind == "vector":
        return f"0/1 vectors of {column.distinct:,} classes"
    if column.kind in ("text", "short text", "SQL"):
        return f"{column.words:.0f} words on average"
    return f"{column.distinct:,} distinct value{'s' * (column.distinct != 1)}"


def _labels(names: Sequence[str], counts: Sequence[int], distinct: int) -> str:
    """Return the number of labels, and the most frequent ones with their rows."""
    shown = ", ".join(f"{name} ({count:,})" for name, count in zip(names[:3], counts, strict=False))
    return f"{distinct:,} labels: {shown}" + (", …" if distinct > 3 else "")


def _rate(rate: float) -> str:
    return f"{rate:.1e}".replace("e-0", "e-")


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
