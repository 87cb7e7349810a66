"""Questions with queries over three generated databases: example data for text to SQL.

A template is a form of question about certain tables and columns. Templates, not questions, are divided between train
and eval: a query of eval asks something about a column that no row of train asks, although its form is known.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

from demo.databases import DATABASES, Database, Link, Number, Table, Text
from demo.question_forms import FORMS, Form

#: Fraction of the templates of each form that go to eval.
EVAL_SHARE = 0.25
#: Attempts at another question per template; those of a template that has no values are soon the same.
TRIES = {"train": 5, "eval": 2}
_LIMIT = re.compile(r"SELECT .+? FROM (?P<rest>.+ ORDER BY (?P<key>\S+)(?: DESC)?) LIMIT (?P<k>\d+)")


@dataclass(frozen=True)
class Template:
    """A form of question about one subject in a database."""

    database: Database
    form: Form
    subject: Table | Link
    text: Text | None
    number: Number | None

    @property
    def name(self) -> str:
        subject = self.subject
        names = [subject.name] if isinstance(subject, Table) else [subject.child, subject.parent]
        names += [column.name for column in (self.text, self.number) if column]
        return f"{self.database.name}/{self.form.name}/{'.'.join(names)}"


def make_text2sql(folder: str | Path, *, seed: int = 17) -> dict[str, list[dict[str, str]]]:
    """Write ``library.sqlite``, ``clinic.sqlite`` and ``shop.sqlite`` into ``folder`` and ask about them.

    Args:
        folder: Folder for the databases; created if it does not exist.
        seed: The same seed gives the same databases and questions, in every process.

    Returns:
        ``train`` and ``eval``: rows with ``question``, ``sql``, ``db_id`` and ``template``. Every query runs and gives
        rows, a query with LIMIT never cuts between ties; no query and no template occurs in both splits.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(f"text2sql {seed}")
    templates = {template.name: template for database in DATABASES for template in _templates(database)}
    held_out = _held_out(sorted(templates), random)
    splits: dict[str, list[dict[str, str]]] = {"train": [], "eval": []}
    for database in DATABASES:
        path = database.write(folder, random)
        with closing(sqlite3.connect(path)) as connection:
            for name, template in templates.items():
                if template.database is database:
                    split = "eval" if name in held_out else "train"
                    splits[split] += _ask(template, connection, random, TRIES[split])
    for rows in splits.values():
        random.shuffle(rows)
    return splits


def _templates(database: Database) -> Iterator[Template]:
    for form in FORMS:
        about, *columns = form.about.split("+")
        for subject in _subjects(database, about):
            asked, described = _tables(database, subject)
            texts = described.texts if "text" in columns else (None,)
            numbers = asked.numbers if "number" in columns else (None,)
            if form.titled and asked.title is None:
                continue
            yield from (Template(database, form, subject, text, number) for text, number in product(texts, numbers))


def _subjects(database: Database, about: str) -> tuple[Table, ...] | tuple[Link, ...]:
    return database.tables if about == "table" else database.links


def _tables(database: Database, subject: Table | Link) -> tuple[Table, Table]:
    """Return the table whose rows and numbers are asked about, and the one whose categories describe them."""
    if isinstance(subject, Table):
        return subject, subject
    return database.table(subject.child), database.table(subject.parent)


def _ask(template: Template, connection: sqlite3.Connection, random: Random, tries: int) -> Iterator[dict[str, str]]:
    """Return different questions of one template, each with a query that returns something definite."""
    seen: set[str] = set()
    for _ in range(tries):
        names, phrases = _slots(template, connection, random)
        sql = template.form.sql.format_map(names)
        question = random.choice(template.form.asks).format_map(phrases)
        if question not in seen and _is_definite(connection, sql):
            seen.add(question)
            yield {"question": question, "sql": sql, "db_id": template.database.name, "template": template.name}


def _slots(template: Template, connection: sqlite3.Connection, random: Random) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of the slots in the query, and those in the question."""
    subject, database = template.subject, template.database
    asked, described = _tables(database, subject)
    names = {"title": asked.title or "", "k": str(random.randint(2, 5)), "h": str(random.randint(2, 6))}
    phrases = {"one": asked.one, "many": asked.many}
    if template.text:
        value = _value(connection, described.name, template.text.name, random)
        names |= {"text": template.text.name, "v": _quote(value)}
        phrases |= {"text_words": template.text.words, "where": random.choice(template.text.where).format(v=value)}
    if template.number:
        low, high = _thresholds(connection, asked.name, template.number.name, random)
        names |= {"number": template.number.name, "n": low, "n2": high}
        phrases |= _number_phrases(template.number, low, random)
    if isinstance(subject, Table):
        names |= {"t": asked.name}
    else:
        parent_value = _value(connection, described.name, described.title or "", random)
        names |= {"c": asked.name, "p": described.name, "key": subject.key, "ptitle": described.title or ""}
        names |= {"pv": _quote(parent_value)}
        phrases |= _link_phrases(subject, asked, described, parent_value, names | phrases, random)
    return names, names | phrases


def _number_phrases(number: Number, threshold: str, random: Random) -> dict[str, str]:
    return {
        "words": number.words,
        "more": random.choice(number.more).format(v=threshold),
        "less": random.choice(number.less).format(v=threshold),
        "most": random.choice(number.most),
        "least": random.choice(number.least),
    }


def _link_phrases(
    link: Link, child: Table, parent: Table, value: str, known: dict[str, str], random: Random
) -> dict[str, str]:
    return {
        "pone": parent.one,
        "pmany": parent.many,
        "of": random.choice(link.of).format(v=value),
        "of_where": random.choice(link.of).format(v=f"{parent.many} {known.get('where', '')}"),
        "have_many": random.choice(link.have).format(c=f"more than {known['h']} {child.many}"),
        "have_more": random.choice(link.have).format(c=f"at least one {child.one} {known.get('more', '')}"),
        "lack": random.choice(link.lack),
    }


def _value(connection: sqlite3.Connection, table: str, column: str, random: Random) -> str:
    """Return a value from a random row, so that questions about frequent ones are more frequent."""
    values = connection.execute(f"SELECT {column} FROM {table} ORDER BY rowid").fetchall()
    return str(random.choice(values)[0])


def _thresholds(connection: sqlite3.Connection, table: str, column: str, random: Random) -> tuple[str, str]:
    """Return two values of a column, the first below its median, the second above."""
    values = [value for (value,) in connection.execute(f"SELECT {column} FROM {table} ORDER BY {column}")]
    low, high = random.randint(15, 50), random.randint(60, 90)
    return str(values[len(values) * low // 100]), str(values[len(values) * high // 100])


def _quote(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _is_definite(connection: sqlite3.Connection, sql: str) -> bool:
    """Return whether a query returns rows other than a lone 0 or NULL, and does not cut between ties."""
    rows = connection.execute(sql).fetchall()
    if not rows or rows in ([(None,)], [(0,)]):
        return False
    limited = _LIMIT.fullmatch(sql)
    if not limited:
        return True
    last = int(limited["k"])
    keys = connection.execute(f"SELECT {limited['key']} FROM {limited['rest']} LIMIT {last + 1}").fetchall()
    return len(set(keys)) == len(keys)


def _held_out(names: list[str], random: Random) -> set[str]:
    """Return a quarter of the templates of each form, so that train has every form."""
    forms: dict[str, list[str]] = defaultdict(list)
    for name in names:
        forms[name.split("/")[1]].append(name)
    return {name for group in forms.values() for name in random.sample(group, round(EVAL_SHARE * len(group)))}
