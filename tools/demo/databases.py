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

    @property
    def key(self) -> str:
        return f"{self.one.replace(' ', '_')}_id"


@dataclass(frozen=True)
class Link:
    """A child row belongs to a parent row.

    ``of`` follows the children (*books by {v}*), ``have`` the parents (*authors who wrote {c}*), ``lack`` too (*authors
    who wrote no book*).
    """

    child: str
    parent: str
    of: tuple[str, ...]
    have: tuple[str, ...]
    lack: tuple[str, ...]


@dataclass(frozen=True)
class Via:
    """Two tables that a third one connects: *members who borrowed {v}*; the first phrase also fits several."""

    first: str
    middle: str
    second: str
    have: tuple[str, ...]


@dataclass(frozen=True)
class Database:
    name: str
    tables: tuple[Table, ...]
    links: tuple[Link, ...]
    vias: tuple[Via, ...]
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
            "CREATE TABLE authors (author_id INTEGER PRIMARY KEY, name TEXT, country TEXT, birth_year INTEGER)",
            "name",
            (Text("country", "country", ("from {v}", "who come from {v}")),),
            (
                Number(
                    "birth_year",
                    "year of birth",
                    ("born after {v}",),
                    ("born before {v}",),
                    ("born last", "who was born last"),
                    ("born first", "who was born first"),
                ),
            ),
        ),
        Table(
            "books",
            "book",
            "books",
            "CREATE TABLE books (book_id INTEGER PRIMARY KEY, title TEXT, "
            "author_id INTEGER REFERENCES authors (author_id), "
            "genre TEXT, year INTEGER, pages INTEGER)",
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
            ),
        ),
        Table(
            "members",
            "member",
            "members",
            "CREATE TABLE members (member_id INTEGER PRIMARY KEY, name TEXT, city TEXT, age INTEGER, joined INTEGER)",
            "name",
            (Text("city", "city", ("from {v}", "living in {v}")),),
            (
                Number(
                    "age",
                    "age",
                    ("older than {v}", "over {v} years old"),
                    ("younger than {v}", "under {v} years old"),
                    ("with the highest age", "who is the oldest"),
                    ("with the lowest age", "who is the youngest"),
                ),
            ),
        ),
        Table(
            "loans",
            "loan",
            "loans",
            "CREATE TABLE loans (loan_id INTEGER PRIMARY KEY, book_id INTEGER REFERENCES books (book_id), "
            "member_id INTEGER REFERENCES members (member_id), loan_date TEXT, days_kept INTEGER, fine REAL)",
            None,
            (),
            (
                Number(
                    "days_kept",
                    "number of days kept",
                    ("that lasted more than {v} days",),
                    ("that lasted fewer than {v} days",),
                    ("that lasted longest",),
                    ("that lasted shortest",),
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
            ("by {v}", "written by {v}"),
            ("who wrote {c}",),
            ("who wrote no book", "without any book"),
        ),
        Link(
            "loans",
            "books",
            ("of {v}",),
            ("that were lent in {c}",),
            ("that were never lent", "without a loan"),
        ),
        Link("loans", "members", ("by {v}", "made by {v}"), ("who made {c}",), ("who never borrowed a book",)),
    ),
    (
        Via("members", "loans", "books", ("who borrowed {v}", "who have had {v} on loan")),
        Via("books", "loans", "members", ("borrowed by {v}", "that {v} has borrowed")),
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
            "CREATE TABLE doctors (doctor_id INTEGER PRIMARY KEY, name TEXT, specialty TEXT, experience INTEGER, "
            "salary INTEGER)",
            "name",
            (Text("specialty", "specialty", ("in {v}", "specialised in {v}")),),
            (
                Number(
                    "experience",
                    "experience in years",
                    ("with more than {v} years of experience",),
                    ("with fewer than {v} years of experience",),
                    ("with the most experience", "who has practised longest"),
                    ("with the least experience", "who has practised shortest"),
                ),
                Number(
                    "salary",
                    "salary",
                    ("earning more than {v}", "with a salary above {v}"),
                    ("earning less than {v}", "with a salary below {v}"),
                    ("with the highest salary", "who earns the most"),
                    ("with the lowest salary", "who earns the least"),
                ),
            ),
        ),
        Table(
            "patients",
            "patient",
            "patients",
            "CREATE TABLE patients (patient_id INTEGER PRIMARY KEY, name TEXT, age INTEGER, city TEXT, "
            "blood_type TEXT)",
            "name",
            (
                Text("city", "city", ("from {v}", "living in {v}")),
                Text("blood_type", "blood type", ("with blood type {v}", "of blood type {v}")),
            ),
            (
                Number(
                    "age",
                    "age",
                    ("older than {v}", "aged over {v}"),
                    ("younger than {v}", "aged under {v}"),
                    ("with the highest age", "who is the oldest"),
                    ("with the lowest age", "who is the youngest"),
                ),
            ),
        ),
        Table(
            "visits",
            "visit",
            "visits",
            "CREATE TABLE visits (visit_id INTEGER PRIMARY KEY, patient_id INTEGER REFERENCES patients (patient_id), "
            "doctor_id INTEGER REFERENCES doctors (doctor_id), visit_date TEXT, diagnosis TEXT, cost INTEGER)",
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
            ),
        ),
        Table(
            "prescriptions",
            "prescription",
            "prescriptions",
            "CREATE TABLE prescriptions (prescription_id INTEGER PRIMARY KEY, "
            "visit_id INTEGER REFERENCES visits (visit_id), "
            "drug TEXT, dose INTEGER, days INTEGER)",
            None,
            (Text("drug", "drug", ("of {v}", "for the drug {v}")),),
            (
                Number(
                    "dose",
                    "dose",
                    ("with a dose above {v}",),
                    ("with a dose below {v}",),
                    ("with the highest dose",),
                    ("with the lowest dose",),
                ),
                Number(
                    "days",
                    "number of days",
                    ("for more than {v} days",),
                    ("for fewer than {v} days",),
                    ("for the most days",),
                    ("for the fewest days",),
                ),
            ),
        ),
    ),
    (
        Link("visits", "doctors", ("to {v}", "received by {v}"), ("who received {c}",), ("who received no visit",)),
        Link(
            "visits", "patients", ("by {v}", "made by {v}"), ("who made {c}",), ("who never came", "without any visit")
        ),
    ),
    (
        Via("patients", "visits", "doctors", ("who visited {v}", "seen by {v}")),
        Via("doctors", "visits", "patients", ("who saw {v}", "visited by {v}")),
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
            "CREATE TABLE suppliers (supplier_id INTEGER PRIMARY KEY, name TEXT, country TEXT, rating REAL)",
            "name",
            (Text("country", "country", ("from {v}", "based in {v}")),),
            (
                Number(
                    "rating",
                    "rating",
                    ("rated above {v}", "with a rating over {v}"),
                    ("rated below {v}", "with a rating under {v}"),
                    ("with the best rating", "that is rated highest"),
                    ("with the worst rating", "that is rated lowest"),
                ),
            ),
        ),
        Table(
            "products",
            "product",
            "products",
            "CREATE TABLE products (product_id INTEGER PRIMARY KEY, name TEXT, category TEXT, price REAL, "
            "stock INTEGER, "
            "supplier_id INTEGER REFERENCES suppliers (supplier_id))",
            "name",
            (Text("category", "category", ("in the category {v}", "from the {v} department")),),
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
            ),
        ),
        Table(
            "customers",
            "customer",
            "customers",
            "CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, name TEXT, city TEXT, segment TEXT, "
            "since INTEGER)",
            "name",
            (
                Text("city", "city", ("from {v}", "living in {v}")),
                Text("segment", "segment", ("of the {v} segment", "in the segment {v}")),
            ),
            (
                Number(
                    "since",
                    "year of registration",
                    ("registered after {v}",),
                    ("registered before {v}",),
                    ("registered last",),
                    ("registered first",),
                ),
            ),
        ),
        Table(
            "orders",
            "order",
            "orders",
            "CREATE TABLE orders (order_id INTEGER PRIMARY KEY, "
            "customer_id INTEGER REFERENCES customers (customer_id), "
            "product_id INTEGER REFERENCES products (product_id), quantity INTEGER, order_date TEXT, status TEXT)",
            None,
            (Text("status", "status", ("with the status {v}", "that are {v}")),),
            (
                Number(
                    "quantity",
                    "quantity",
                    ("of more than {v} pieces",),
                    ("of fewer than {v} pieces",),
                    ("of the most pieces",),
                    ("of the fewest pieces",),
                ),
            ),
        ),
    ),
    (
        Link(
            "products", "suppliers", ("from {v}", "supplied by {v}"), ("that supply {c}",), ("that supply no product",)
        ),
        Link("orders", "customers", ("by {v}", "placed by {v}"), ("who placed {c}",), ("who never ordered anything",)),
        Link("orders", "products", ("of the {v}", "for the {v}"), ("that occur in {c}",), ("that were never ordered",)),
    ),
    (
        Via("customers", "orders", "products", ("who ordered the {v}", "who bought the {v}")),
        Via("products", "orders", "customers", ("ordered by {v}", "that {v} has bought")),
    ),
    shop_rows,
)

DATABASES = (LIBRARY, CLINIC, SHOP)
