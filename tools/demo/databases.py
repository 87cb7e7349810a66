"""Three small fictional databases (a library, a clinic, a shop), and the phrases for their columns."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from demo.database_rows import Rows, clinic_rows, library_rows, shop_rows


@dataclass(frozen=True)
class Text:
    """A column of categories. ``where`` follows a plural noun: *books of the genre {v}*."""

    name: str
    words: str
    where: tuple[str, ...]


@dataclass(frozen=True)
class Number:
    """A column of numbers. ``more`` and ``less`` follow a plural noun, ``most`` and ``least`` one in the singular."""

    name: str
    words: str
    more: tuple[str, ...]
    less: tuple[str, ...]
    most: tuple[str, ...]
    least: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table: its nouns, the column that names a row (None when none does), the columns used in questions."""

    name: str
    one: str
    many: str
    create: str
    title: str | None = None
    texts: tuple[Text, ...] = ()
    numbers: tuple[Number, ...] = ()


@dataclass(frozen=True)
class Link:
    """A child row belongs to a parent row, whose id is in the column ``key`` of the child.

    ``of`` follows the children (*books by {v}*), ``have`` the parents (*authors who wrote {c}*), ``lack`` too (*authors
    who wrote no book*).
    """

    child: str
    parent: str
    key: str
    of: tuple[str, ...]
    have: tuple[str, ...]
    lack: tuple[str, ...]


@dataclass(frozen=True)
class Database:
    name: str
    tables: tuple[Table, ...]
    links: tuple[Link, ...]
    fill: Callable[[Random], dict[str, Rows]]

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)

    def write(self, folder: Path, random: Random) -> Path:
        """Create ``<name>.sqlite`` in the folder, replacing an existing file."""
        path = folder / f"{self.name}.sqlite"
        path.unlink(missing_ok=True)
        rows = self.fill(random)
        with closing(sqlite3.connect(path)) as connection, connection:
            for table in self.tables:
                connection.execute(table.create)
                marks = ", ".join("?" * len(rows[table.name][0]))
                connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", rows[table.name])
        return path


LIBRARY = Database(
    "library",
    (
        Table(
            "authors",
            "author",
            "authors",
            "CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT, country TEXT, born INTEGER, prizes INTEGER)",
            "name",
            (Text("country", "country", ("from {v}", "who come from {v}")),),
            (
                Number(
                    "born",
                    "year of birth",
                    ("born after {v}",),
                    ("born before {v}",),
                    ("born last", "who was born last"),
                    ("born first", "who was born first"),
                ),
                Number(
                    "prizes",
                    "number of prizes",
                    ("with more than {v} prizes",),
                    ("with fewer than {v} prizes",),
                    ("with the most prizes",),
                    ("with the fewest prizes",),
                ),
            ),
        ),
        Table(
            "books",
            "book",
            "books",
            "CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT, author INTEGER REFERENCES authors (id), "
            "genre TEXT, year INTEGER, pages INTEGER, copies INTEGER)",
            "title",
            (Text("genre", "genre", ("of the genre {v}", "in the {v} section")),),
            (
                Number(
                    "pages",
                    "number of pages",
                    ("with more than {v} pages", "longer than {v} pages"),
                    ("with fewer than {v} pages", "shorter than {v} pages"),
                    ("with the most pages", "that has the most pages"),
                    ("with the fewest pages", "that has the fewest pages"),
                ),
                Number(
                    "year",
                    "year of publication",
                    ("published after {v}",),
                    ("published before {v}",),
                    ("published last", "that came out most recently"),
                    ("published first", "that came out earliest"),
                ),
                Number(
                    "copies",
                    "number of copies",
                    ("with more than {v} copies",),
                    ("with fewer than {v} copies",),
                    ("with the most copies",),
                    ("with the fewest copies",),
                ),
            ),
        ),
        Table(
            "loans",
            "loan",
            "loans",
            "CREATE TABLE loans (id INTEGER PRIMARY KEY, book INTEGER REFERENCES books (id), city TEXT, "
            "days INTEGER, fine INTEGER)",
            None,
            (Text("city", "city", ("in {v}", "from the branch in {v}")),),
            (
                Number(
                    "days",
                    "number of days",
                    ("of more than {v} days",),
                    ("of fewer than {v} days",),
                    ("of the most days",),
                    ("of the fewest days",),
                ),
                Number(
                    "fine",
                    "fine",
                    ("with a fine above {v}",),
                    ("with a fine below {v}",),
                    ("with the highest fine",),
                    ("with the lowest fine",),
                ),
            ),
        ),
    ),
    (
        Link(
            "books",
            "authors",
            "author",
            ("by {v}", "written by {v}"),
            ("who wrote {c}",),
            ("who wrote no book", "without any book"),
        ),
        Link(
            "loans",
            "books",
            "book",
            ("of {v}",),
            ("that were lent in {c}",),
            ("that were never lent", "without a loan"),
        ),
    ),
    library_rows,
)

CLINIC = Database(
    "clinic",
    (
        Table(
            "doctors",
            "doctor",
            "doctors",
            "CREATE TABLE doctors (id INTEGER PRIMARY KEY, name TEXT, specialty TEXT, salary INTEGER, service INTEGER)",
            "name",
            (Text("specialty", "specialty", ("in {v}", "specialised in {v}")),),
            (
                Number(
                    "salary",
                    "salary",
                    ("earning more than {v}", "with a salary above {v}"),
                    ("earning less than {v}", "with a salary below {v}"),
                    ("with the highest salary", "who earns the most"),
                    ("with the lowest salary", "who earns the least"),
                ),
                Number(
                    "service",
                    "years of service",
                    ("with more than {v} years of service",),
                    ("with fewer than {v} years of service",),
                    ("with the most years of service",),
                    ("with the fewest years of service",),
                ),
            ),
        ),
        Table(
            "patients",
            "patient",
            "patients",
            "CREATE TABLE patients (id INTEGER PRIMARY KEY, name TEXT, doctor INTEGER REFERENCES doctors (id), "
            "town TEXT, age INTEGER, weight INTEGER, height INTEGER)",
            "name",
            (Text("town", "town", ("from {v}", "living in {v}")),),
            (
                Number(
                    "age",
                    "age",
                    ("older than {v}", "aged over {v}"),
                    ("younger than {v}", "aged under {v}"),
                    ("with the highest age", "who is the oldest"),
                    ("with the lowest age", "who is the youngest"),
                ),
                Number(
                    "weight",
                    "weight",
                    ("heavier than {v} kg", "who weigh more than {v} kg"),
                    ("lighter than {v} kg", "who weigh less than {v} kg"),
                    ("with the highest weight", "who is the heaviest"),
                    ("with the lowest weight", "who is the lightest"),
                ),
                Number(
                    "height",
                    "height",
                    ("taller than {v} cm",),
                    ("shorter than {v} cm",),
                    ("who is the tallest",),
                    ("who is the shortest",),
                ),
            ),
        ),
        Table(
            "visits",
            "visit",
            "visits",
            "CREATE TABLE visits (id INTEGER PRIMARY KEY, patient INTEGER REFERENCES patients (id), diagnosis TEXT, "
            "cost INTEGER, minutes INTEGER)",
            None,
            (Text("diagnosis", "diagnosis", ("for {v}", "with the diagnosis {v}")),),
            (
                Number(
                    "cost",
                    "cost",
                    ("that cost more than {v}",),
                    ("that cost less than {v}",),
                    ("that cost the most",),
                    ("that cost the least",),
                ),
                Number(
                    "minutes",
                    "number of minutes",
                    ("of more than {v} minutes",),
                    ("of fewer than {v} minutes",),
                    ("of the most minutes",),
                    ("of the fewest minutes",),
                ),
            ),
        ),
    ),
    (
        Link(
            "patients",
            "doctors",
            "doctor",
            ("of {v}", "treated by {v}"),
            ("who treat {c}",),
            ("who treat no patient", "without any patient"),
        ),
        Link(
            "visits",
            "patients",
            "patient",
            ("by {v}", "made by {v}"),
            ("who made {c}",),
            ("who never came", "without any visit"),
        ),
    ),
    clinic_rows,
)

SHOP = Database(
    "shop",
    (
        Table(
            "suppliers",
            "supplier",
            "suppliers",
            "CREATE TABLE suppliers (id INTEGER PRIMARY KEY, name TEXT, land TEXT, rating REAL, staff INTEGER)",
            "name",
            (Text("land", "land", ("from {v}", "based in {v}")),),
            (
                Number(
                    "rating",
                    "rating",
                    ("rated above {v}", "with a rating over {v}"),
                    ("rated below {v}", "with a rating under {v}"),
                    ("with the best rating", "that is rated highest"),
                    ("with the worst rating", "that is rated lowest"),
                ),
                Number(
                    "staff",
                    "number of staff",
                    ("with a staff of more than {v}",),
                    ("with a staff of fewer than {v}",),
                    ("with the largest staff",),
                    ("with the smallest staff",),
                ),
            ),
        ),
        Table(
            "products",
            "product",
            "products",
            "CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, supplier INTEGER REFERENCES suppliers (id), "
            "kind TEXT, price INTEGER, stock INTEGER, weight INTEGER)",
            "name",
            (Text("kind", "kind", ("of the kind {v}", "from the {v} department")),),
            (
                Number(
                    "price",
                    "price",
                    ("that cost more than {v}", "priced above {v}"),
                    ("that cost less than {v}", "priced below {v}"),
                    ("with the highest price", "that is the most expensive"),
                    ("with the lowest price", "that is the cheapest"),
                ),
                Number(
                    "stock",
                    "stock",
                    ("with more than {v} pieces in stock",),
                    ("with fewer than {v} pieces in stock",),
                    ("with the largest stock",),
                    ("with the smallest stock",),
                ),
                Number(
                    "weight",
                    "weight",
                    ("heavier than {v} grams",),
                    ("lighter than {v} grams",),
                    ("that is the heaviest",),
                    ("that is the lightest",),
                ),
            ),
        ),
        Table(
            "orders",
            "order",
            "orders",
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, product INTEGER REFERENCES products (id), state TEXT, "
            "pieces INTEGER, discount INTEGER)",
            None,
            (Text("state", "state", ("in the state {v}", "that are {v}")),),
            (
                Number(
                    "pieces",
                    "number of pieces",
                    ("of more than {v} pieces",),
                    ("of fewer than {v} pieces",),
                    ("of the most pieces",),
                    ("of the fewest pieces",),
                ),
                Number(
                    "discount",
                    "discount",
                    ("with a discount above {v}",),
                    ("with a discount below {v}",),
                    ("with the highest discount",),
                    ("with the lowest discount",),
                ),
            ),
        ),
    ),
    (
        Link(
            "products",
            "suppliers",
            "supplier",
            ("from {v}", "supplied by {v}"),
            ("that supply {c}",),
            ("that supply no product",),
        ),
        Link(
            "orders",
            "products",
            "product",
            ("of the {v}", "for the {v}"),
            ("that occur in {c}",),
            ("that were never ordered",),
        ),
    ),
    shop_rows,
)

DATABASES = (LIBRARY, CLINIC, SHOP)
