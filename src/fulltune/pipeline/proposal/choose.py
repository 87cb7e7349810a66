"""Choose a task and the columns that it reads."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fulltune.data.columns import roles
from fulltune.data.columns.profile import ColumnKind, Profile, holds
from fulltune.data.folders import DOCUMENT_COLUMNS
from fulltune.errors import ConfigError, DataError, Problem, did_you_mean, on_one_line
from fulltune.runtime.config_file import as_value

#: Columns and databases named in a message.
_LISTED, _NAMED = 20, 5

#: Column with the folder of a document, and mean number of words from which its texts are not classified.
_FOLDER = DOCUMENT_COLUMNS[1]
_LONG = 400

#: Values of a column that says whether a row has one label.
_FLAGS = frozenset({"0", "1", "0.0", "1.0"})

#: Mean number of words from which repeated values are sentences.
_SENTENCE = 3

#: Names of the two columns of a prompt and its completion.
_PROMPTS = frozenset({"prompt", "instruction", "context"})
_COMPLETIONS = frozenset({"completion", "response", "output", "continuation"})

#: Names of one of two texts that are labeled together; with numbers or letters: sentence1, text_b.
_TWINS = frozenset({"premise", "hypothesis", "first", "second"})
_NUMBERED = re.compile(r"(.*?)[ _-]?([12ab])", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """A task and its columns.

    Attributes:
        task: Name of the task.
        columns: Column by role (``text``, ``label``, ``labels``, ``source``, …).
        because: The reason for this task, as a phrase.
        separator: Separator of several labels in one cell.
        names: Names of the classes for labels that are 0/1 vectors, to be replaced by the user.
        notes: Other possible choices, and the key that changes it; one sentence each.
    """

    task: str
    columns: Mapping[str, Profile]
    because: str
    separator: str = ""
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def used(self) -> set[str]:
        """Names of the columns that the task reads."""
        return {column.name for column in self.columns.values()}


def choose(columns: Sequence[Profile], asked: str | None, databases: Sequence[Path]) -> Choice:
    """Choose a task by what the columns hold, or the columns of the task that is asked for.

    Raises:
        DataError: The columns fit no task, or not the one asked for; lists what each column holds.
        ConfigError: There is no such task.
    """
    if asked is not None:
        if asked not in _TASKS:
            listed = ", ".join(_TASKS)
            fix = did_you_mean(asked, _TASKS) or "choose one of these"
            raise ConfigError(f"init has no task {asked!r}", expected=f"one of {listed}", fix=fix, where="--task")
        return _TASKS[asked](columns, databases)
    return _by_content(columns, databases)


#: Kinds of columns among which a role is chosen; the last one is that of a column which is named for it.
_KINDS: Mapping[str, tuple[ColumnKind, ...]] = {
    "text": ("short text", "repeated", "text"),
    "label": ("labels", "category"),
}


def narrowed(columns: Sequence[Profile], named: Mapping[str, str]) -> list[Profile]:
    """Return the columns without those that compete with the ones which are named for a role.

    Raises:
        ConfigError: There is no such column; lists what each column holds.
    """
    for role, name in named.items():
        known = [one.name for one in columns]
        if name not in known:
            fix = f"{did_you_mean(name, known) or 'choose one of these.'} The columns are:\n{seen(columns)}"
            raise ConfigError(f"no column {name!r}", expected="a column of the data", fix=fix, where=f"--{role}")
    for role, name in named.items():
        kinds = _KINDS[role]
        rest = [one for one in columns if one.kind not in kinds or one.name in named.values()]
        columns = [replace(one, kind=kinds[-1]) if one.name == name and one.kind not in kinds else one for one in rest]
    return list(columns)


def _by_content(columns: Sequence[Profile], databases: Sequence[Path]) -> Choice:
    kinds = {column.kind for column in columns}
    if "tags" in kinds:
        raise _unsupported(columns, "lists of tokens with one tag each (token classification)")
    if "messages" in kinds:
        return _chats(columns, "causal-lm")
    if "SQL" in kinds:
        return _text2sql(columns, databases) if databases else _queries_alone(columns)
    label = roles.label(columns).column
    explicit = _named_pair(columns)
    if explicit is not None and (label is None or not roles.name_words(label.name) & {"label", "labels"}):
        return explicit
    texts = roles.texts(columns, without={label.name}) if label else []
    if label is not None and texts:
        return _with_folders(columns, texts[0]) if label.name == _FOLDER else _classification(columns, databases)
    if "vector" in kinds and roles.texts(columns):
        return _with_vectors(columns)
    return _without_labels(columns)


def _with_vectors(columns: Sequence[Profile]) -> Choice:
    """Return the task for texts whose labels are 0/1 vectors, with names for the classes that the user replaces."""
    vector = next(one for one in columns if one.kind == "vector")
    names = tuple(f"class {number}" for number in range(1, vector.distinct + 1))
    because = f"`{vector.name}` has 0/1 vectors of {vector.distinct:,} classes"
    note = "write the names of the classes in data.label_names, in the order of the vectors"
    text = roles.texts(columns)[0]
    return Choice("classification", {"text": text, "labels": vector}, because, names=names, notes=(note,))


def _with_folders(columns: Sequence[Profile], text: Profile) -> Choice:
    """Return the task for documents in several folders, which are labels of short texts, or parts of a collection."""
    if text.words > _LONG:
        choice, other = _causal_lm([text], ()), "to learn the folders as labels: --task classification"
    else:
        choice, other = _classification(columns, ()), "to learn the texts themselves: --task causal-lm"
    return replace(choice, notes=(*choice.notes, other))


def _without_labels(columns: Sequence[Profile]) -> Choice:
    long = [one for one in columns if one.kind == "text" and 1.05 * one.filled >= one.rows]
    pair = roles.pair(long)
    if pair is not None and not _has_title(pair):
        return _pair(pair, columns, "two columns of text and no label")
    if roles.texts(columns):
        return _causal_lm(columns, ())
    raise _nothing(columns, "no column of text")


# ---- One function per task ----


def _classification(columns: Sequence[Profile], databases: Sequence[Path]) -> Choice:
    labels = roles.label(columns, required=True)
    if labels.column is None and any(one.kind == "vector" for one in columns) and roles.texts(columns):
        return _with_vectors(columns)
    if labels.column is None:
        raise _nothing(columns, "no column of labels: few values, each in many rows", task="classification")
    label = labels.column
    texts = roles.texts(columns, without={label.name})
    if not texts:
        raise _nothing(columns, "no column of text besides the labels", task="classification")
    twins = [one for one in texts if _is_twin(one, texts)]
    if len(twins) > 1:
        names = " and ".join(f"`{one.name}`" for one in twins[:2])
        fix = "join the two texts in one column, or write a config for one of them"
        raise _unsupported(columns, f"pairs of texts with a label ({names}): classification reads one column", fix)
    several = label.kind == "labels"
    because = f"`{label.name}` has {label.distinct:,} values in {label.filled:,} rows"
    because += ", several of them per row" if several else ""
    group = roles.group(columns, {texts[0].name, label.name})
    flags = [one for one in (label, *labels.others) if set(one.examples) <= _FLAGS]
    notes = [_flagged(flags)] if label in flags and len(flags) > 2 else []
    notes += [_other("label", other) for other in labels.others[:3] if other is not group]
    notes += [_unread(other, "text") for other in texts[1:] if other.kind == "text"]
    role = "labels" if several else "label"
    return Choice("classification", {"text": texts[0], role: label}, because, label.separator, notes=tuple(notes))


def _chats(columns: Sequence[Profile], task: str) -> Choice:
    """Return the task for chats, whose last answer is learned."""
    found = [one for one in columns if one.kind == "messages"]
    notes = [_unread(one, "messages") for one in found[1:]]
    because = f"`{found[0].name}` has chats, whose last answer is learned"
    return Choice(task, {"messages": found[0]}, because, notes=tuple(notes))


def _causal_lm(columns: Sequence[Profile], databases: Sequence[Path]) -> Choice:
    prompt = next((one for one in columns if roles.name_words(one.name) & _PROMPTS), None)
    completion = next((one for one in columns if roles.name_words(one.name) & _COMPLETIONS), None)
    if prompt and completion and prompt is not completion:
        because = f"`{prompt.name}` is followed by `{completion.name}`"
        rest = [one for one in roles.texts(columns, without={prompt.name, completion.name}) if one.filled]
        unread = tuple(_unread(one, "prompt") for one in rest)
        return Choice("causal-lm", {"prompt": prompt, "completion": completion}, because, notes=unread)
    texts = roles.texts(columns)
    if not texts and any(one.kind == "messages" for one in columns):
        return _chats(columns, "causal-lm")
    if not texts:
        raise _nothing(columns, "no column of text", task="causal-lm")
    notes = [_unread(other, "text") for other in texts[1:]]
    taken = roles.group(columns, {texts[0].name})
    labels = roles.label(columns, required=True).candidates
    notes += [_other("label", other) for other in labels[:3] if other is not taken]
    because = "texts without labels" if len(columns) > 1 else "text alone"
    return Choice("causal-lm", {"text": texts[0]}, because, notes=tuple(notes))


def _seq2seq(columns: Sequence[Profile], databases: Sequence[Path]) -> Choice:
    pair = roles.pair(columns)
    if pair is None and any(one.kind == "messages" for one in columns):
        return _chats(columns, "seq2seq")
    if pair is None:
        raise _nothing(columns, "no two columns of text", task="seq2seq")
    return _pair(pair, columns, "asked for")


def _text2sql(columns: Sequence[Profile], databases: Sequence[Path]) -> Choice:
    queries = [one for one in columns if one.kind == "SQL"]
    if not queries:
        raise _nothing(columns, "no column of SQL queries", task="text2sql")
    sql = max(queries, key=lambda one: (one.name.lower() == "sql", roles.is_called(one, "sql"), -one.words))
    texts = roles.texts(columns, without={one.name for one in queries}) or _repeated_texts(columns)
    if not texts:
        raise _nothing(columns, "no column of questions besides the queries", task="text2sql")
    question = max(texts, key=lambda one: roles.is_called(one, "question"))
    notes = [_other("sql", other) for other in queries if other is not sql]
    chosen = {"question": question, "sql": sql}
    named = _database_column(columns, databases)
    if named is not None:
        chosen["db_id"] = named
    elif len(databases) != 1:
        raise _not_one(columns, databases)
    return Choice("text2sql", chosen, f"`{sql.name}` has SQL queries", notes=tuple(notes))


def _repeated_texts(columns: Sequence[Profile]) -> list[Profile]:
    """Return the columns of sentences of which each occurs in several rows, as questions made by a template do."""
    return [one for one in columns if one.kind == "category" and one.words >= _SENTENCE]


_TASKS: dict[str, Callable[[Sequence[Profile], Sequence[Path]], Choice]] = {
    "classification": _classification,
    "causal-lm": _causal_lm,
    "seq2seq": _seq2seq,
    "text2sql": _text2sql,
}


# ---- Parts ----


def _named_pair(columns: Sequence[Profile]) -> Choice | None:
    """Return the task of two columns whose names say which is the source and which the target, or None."""
    words = {one.name: roles.name_words(one.name) for one in columns if one.kind in ("text", "short text", "repeated")}
    prompts = [name for name, parts in words.items() if parts & _PROMPTS]
    completions = [name for name, parts in words.items() if parts & _COMPLETIONS]
    if prompts and completions and prompts != completions:
        return _causal_lm([one for one in columns if one.name in words], ())
    pair = roles.pair([one for one in columns if one.kind in ("text", "short text")])
    if pair is None or _has_title(pair):
        return None
    is_named = roles.is_called(pair[0], "source") and roles.is_called(pair[1], "target")
    return _pair(pair, columns, f"`{pair[1].name}` answers `{pair[0].name}`") if is_named else None


def _pair(pair: tuple[Profile, Profile], columns: Sequence[Profile], because: str) -> Choice:
    source, target = pair
    notes = [f"for the other direction swap data.source and data.target (`{source.name}`, `{target.name}`)"]
    rest = [one for one in columns if one.kind == "text" and one not in pair]
    return Choice(
        "seq2seq",
        {"source": source, "target": target},
        because,
        notes=(*notes, *(_unread(one, "source") for one in rest)),
    )


def _queries_alone(columns: Sequence[Profile]) -> Choice:
    """Return the task for queries without a database: they are compared as text."""
    sql = next(one for one in columns if one.kind == "SQL")
    texts = roles.texts(columns, without={sql.name})
    if not texts:
        return _causal_lm(columns, ())
    note = "no SQLite database is next to the rows, so queries are compared as text; with one the task is text2sql"
    return Choice("seq2seq", {"source": texts[0], "target": sql}, f"`{sql.name}` has SQL queries", notes=(note,))


def _database_column(columns: Sequence[Profile], databases: Sequence[Path]) -> Profile | None:
    """Return the column whose values are the names of the databases; one database needs none."""
    names = {path.stem for path in databases}
    fitting = [one for one in columns if one.kind in ("category", "constant") and set(one.examples) <= names]
    return max(fitting, key=lambda one: roles.is_called(one, "db_id"), default=None)


def _has_title(pair: Collection[Profile]) -> bool:
    return any(roles.is_called(one, "title") for one in pair)


def _is_twin(column: Profile, columns: Sequence[Profile]) -> bool:
    """Return True for one of two texts that belong together by their names: sentence1 and sentence2."""
    if roles.name_words(column.name) & _TWINS:
        return True
    numbered = _NUMBERED.fullmatch(column.name)
    stems = [match[1] for one in columns if (match := _NUMBERED.fullmatch(one.name))]
    return numbered is not None and stems.count(numbered[1]) > 1


def _other(role: str, column: Profile) -> str:
    if role == "label":
        return f"`{column.name}` could be the label: fulltune init … --label {shlex.quote(column.name)}"
    return f"`{column.name}` could be the {role} too: data.{role}: {as_value(column.name)}"


def _flagged(columns: Sequence[Profile]) -> str:
    """Return what to do with classes that are a column each, with 1 in those of a row."""
    named = ", ".join(f"`{one.name}`" for one in columns[:_NAMED]) + (" …" if len(columns) > _NAMED else "")
    return (
        f"{len(columns)} columns of 0 and 1 ({named}) may be one label each, of which only `{columns[0].name}` is "
        "learned; for all of them write the names of those with 1 in one column, such as a;b"
    )


def _unread(column: Profile, role: str) -> str:
    return f"`{column.name}` is not read; to read it instead: data.{role}: {as_value(column.name)}"


# ---- Errors ----


def seen(columns: Sequence[Profile]) -> str:
    """Return what every column holds, one per line."""
    lines = [f"  {on_one_line(one.name)}: {holds(one)}" for one in columns[:_LISTED]]
    return "\n".join(lines + ([f"  … and {len(columns) - _LISTED} more"] if len(columns) > _LISTED else []))


def _nothing(columns: Sequence[Profile], problem: str, fix: str = "", task: str = "") -> DataError:
    needed = {
        "classification": "a column of texts and one of labels",
        "causal-lm": "a column of texts",
        "seq2seq": "two columns of texts",
        "text2sql": "questions, SQL queries, and their SQLite database",
    }
    expected = f"{needed[task]} for {task}" if task else "texts, texts with labels, or pairs of texts"
    return _error(columns, problem, expected, fix or "name other files, or another task (--task)")


def _not_one(columns: Sequence[Profile], databases: Sequence[Path]) -> DataError:
    """Return the error for queries that may be about several databases, or about none."""
    if not databases:
        fix = "name it too: fulltune init ROWS DB"
        return _nothing(columns, "no SQLite database for the queries", fix, task="text2sql")
    names = ", ".join(map(str, databases[:_NAMED])) + (" …" if len(databases) > _NAMED else "")
    fix = (
        f"name the one that all queries are about (fulltune init ROWS {databases[0]}), or add a column with the "
        f"name of the database of each row (such as {databases[0].stem})"
    )
    return _nothing(columns, f"{len(databases)} databases for the queries ({names})", fix, task="text2sql")


def _unsupported(columns: Sequence[Profile], what: str, fix: str = "") -> DataError:
    fix = fix or "write rows for one of these, or name a task for other columns (--task)"
    return _error(columns, what, f"one of {', '.join(_TASKS)}", fix)


def _error(columns: Sequence[Profile], problem: str, expected: str, fix: str) -> DataError:
    return DataError(Problem(problem, expected, f"{fix}. The columns are:\n{seen(columns)}"))
