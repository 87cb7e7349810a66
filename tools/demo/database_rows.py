"""Contents of the example databases: random names, dates and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from random import Random

Value = str | int | float | None
Rows = list[tuple[Value, ...]]

FIRST = """
Ada Boris Clara Dmitri Elena Farid Greta Hugo Irina Jonas Karin Luis Mona Nadia Omar Petra Quentin Rosa Stefan Tamar
Ugo Vera Walter Xenia Yusuf Zoe Anton Bella Cyril Dora
"""
LAST = """
Abend Berger Castillo Dumas Eriksen Fontaine Gruber Haddad Ivanova Jensen Kovacs Laurent Marino Novak O'Neill Popov
Quist Rossi Svensson Tanaka Urban Vogel Weiss Yilmaz Zeman
"""
CITIES = ("Oslo", "Lyon", "Prague", "Porto", "Graz", "Turku", "Bergen", "Gdansk")
COUNTRIES = ("France", "Norway", "Italy", "Japan", "Poland", "Spain", "Canada")


def _people(random: Random, count: int) -> list[str]:
    """Return different full names."""
    return random.sample([f"{first} {last}" for first in FIRST.split() for last in LAST.split()], count)


def _day(random: Random, year: int, days: int) -> str:
    return (date(year, 1, 1) + timedelta(days=random.randrange(days))).isoformat()


def _pick(random: Random, items: Sequence[str]) -> str:
    """Return a random item, the first ones more often than the last, so that groups differ in size."""
    return random.choices(items, weights=range(len(items) + 1, 1, -1))[0]


GENRES = ("fantasy", "history", "crime", "poetry", "science", "travel", "romance")
TITLE_ADJECTIVES = """
Silent Broken Golden Last Hidden Distant Burning Quiet Lost Winter Glass Borrowed Patient Crooked Salt
"""
TITLE_NOUNS = """
Harbour Orchard Letter Mountain River Clock Garden Stranger Kingdom Map Lantern Bridge Island Witness
"""


def library_rows(random: Random) -> dict[str, Rows]:
    titles = random.sample([f"The {a} {n}" for a in TITLE_ADJECTIVES.split() for n in TITLE_NOUNS.split()], 120)
    authors: Rows = [
        (i + 1, name, _pick(random, COUNTRIES), random.randint(1890, 1990))
        for i, name in enumerate(_people(random, 36))
    ]
    books: Rows = [
        (
            i + 1,
            title,
            random.randint(1, 32),
            _pick(random, GENRES),
            random.randint(1930, 2023),
            random.randint(80, 900),
        )
        for i, title in enumerate(titles)
    ]
    members: Rows = [
        (i + 1, name, _pick(random, CITIES), random.randint(12, 88), random.randint(2008, 2024))
        for i, name in enumerate(_people(random, 80))
    ]
    loans: Rows = []
    for i in range(320):
        kept = random.randint(2, 60)
        fine = round(0.25 * (kept - 30), 2) if kept > 30 else 0.0
        loans.append((i + 1, random.randint(1, 105), random.randint(1, 74), _day(random, 2024, 365), kept, fine))
    return {"authors": authors, "books": books, "members": members, "loans": loans}


SPECIALTIES = ("cardiology", "dermatology", "neurology", "paediatrics", "surgery")
DIAGNOSES = ("influenza", "migraine", "eczema", "asthma", "hypertension", "fracture", "anaemia")
DRUGS = ("ibuprofen", "amoxicillin", "salbutamol", "loratadine", "metoprolol", "paracetamol")


def clinic_rows(random: Random) -> dict[str, Rows]:
    doctors: Rows = [
        (i + 1, f"Dr. {name}", _pick(random, SPECIALTIES), random.randint(1, 38), 3000 + 50 * random.randint(10, 140))
        for i, name in enumerate(_people(random, 18))
    ]
    patients: Rows = [
        (i + 1, name, random.randint(1, 93), _pick(random, CITIES), _pick(random, ("A", "0", "B", "AB")))
        for i, name in enumerate(_people(random, 90))
    ]
    visits: Rows = [
        (
            i + 1,
            random.randint(1, 82),
            random.randint(1, 16),
            _day(random, 2024, 365),
            _pick(random, DIAGNOSES),
            5 * random.randint(6, 90),
        )
        for i in range(280)
    ]
    prescriptions: Rows = [
        (i + 1, random.randint(1, 250), _pick(random, DRUGS), 50 * random.randint(1, 16), random.randint(3, 30))
        for i in range(260)
    ]
    return {"doctors": doctors, "patients": patients, "visits": visits, "prescriptions": prescriptions}


CATEGORIES = ("tools", "kitchen", "garden", "toys", "lighting", "office")
GOODS = """
kettle drill lamp rake puzzle stapler hammer pan trowel kite lantern binder saw bowl hose robot torch desk
"""
QUALITIES = """
steel compact oak folding silent red deluxe pocket solar classic
"""


def shop_rows(random: Random) -> dict[str, Rows]:
    names = random.sample([f"{quality} {good}" for quality in QUALITIES.split() for good in GOODS.split()], 80)
    suppliers: Rows = [
        (i + 1, f"{name.split()[1]} & Co", _pick(random, COUNTRIES), round(random.uniform(1, 5), 1))
        for i, name in enumerate(f"x {last}" for last in random.sample(LAST.split(), 14))
    ]
    products: Rows = [
        (
            i + 1,
            name,
            _pick(random, CATEGORIES),
            round(random.uniform(2, 240), 2),
            random.randint(0, 400),
            random.randint(1, 12),
        )
        for i, name in enumerate(names)
    ]
    customers: Rows = [
        (
            i + 1,
            name,
            _pick(random, CITIES),
            _pick(random, ("private", "business", "school")),
            random.randint(2005, 2024),
        )
        for i, name in enumerate(_people(random, 70))
    ]
    orders: Rows = [
        (
            i + 1,
            random.randint(1, 64),
            random.randint(1, 74),
            random.randint(1, 25),
            _day(random, 2024, 365),
            _pick(random, ("delivered", "shipped", "returned", "cancelled")),
        )
        for i in range(330)
    ]
    return {"suppliers": suppliers, "products": products, "customers": customers, "orders": orders}
