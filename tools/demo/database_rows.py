"""Contents of the example databases: random names, dates and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

Value = str | int | float | None
Rows = list[tuple[Value, ...]]

FIRST = """
Ada Boris Clara Dmitri Elena Farid Greta Hugo Irina Jonas Karin Luis Mona Nadia Omar Petra Quentin Rosa Stefan Tamar
Ugo Vera Walter Xenia Yusuf Zoe Anton Bella Cyril Dora
Ivo Lena Marta Nils Olga Pavel Renata Silvia Tomas Ursula Viktor Wanda Alma Bruno Cecilia Doris Edgar Frida Gustav
Helga Ines Jakob Karla Leo Maria Oscar Paula Ruth Simon Thea
"""
LAST = """
Abend Berger Castillo Dumas Eriksen Fontaine Gruber Haddad Ivanova Jensen Kovacs Laurent Marino Novak O'Neill Popov
Quist Rossi Svensson Tanaka Urban Vogel Weiss Yilmaz Zeman D'Angelo O'Brien O'Hara
"""
CITIES = ("Oslo", "Lyon", "Prague", "Porto", "Graz", "Turku", "Bergen", "Gdansk")
COUNTRIES = ("France", "Norway", "Italy", "Japan", "Poland", "Spain", "Canada")


def _shuffled(random: Random, words: str) -> list[str]:
    return random.sample(words.split(), len(words.split()))


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
        (i + 1, name, _pick(random, COUNTRIES), random.randint(1890, 1990), random.randint(0, 40))
        for i, name in enumerate(_shuffled(random, LAST))
    ]
    books: Rows = [
        (
            i + 1,
            title,
            random.randint(1, 25),
            _pick(random, GENRES),
            random.randint(1930, 2023),
            random.randint(80, 900),
            random.randint(1, 200),
        )
        for i, title in enumerate(titles)
    ]
    loans: Rows = [
        (i + 1, random.randint(1, 105), _pick(random, CITIES), random.randint(2, 60), random.randint(1, 90))
        for i in range(320)
    ]
    return {"authors": authors, "books": books, "loans": loans}


SPECIALTIES = ("cardiology", "dermatology", "neurology", "paediatrics", "surgery")
DIAGNOSES = ("influenza", "migraine", "eczema", "asthma", "hypertension", "fracture", "anaemia")


def clinic_rows(random: Random) -> dict[str, Rows]:
    doctors: Rows = [
        (i + 1, f"Dr. {name}", _pick(random, SPECIALTIES), 50 * random.randint(70, 200), random.randint(1, 38))
        for i, name in enumerate(_shuffled(random, LAST))
    ]
    patients: Rows = [
        (
            i + 1,
            name,
            random.randint(1, 25),
            _pick(random, CITIES),
            random.randint(1, 93),
            random.randint(40, 120),
            random.randint(140, 205),
        )
        for i, name in enumerate(_shuffled(random, FIRST))
    ]
    visits: Rows = [
        (i + 1, random.randint(1, 54), _pick(random, DIAGNOSES), 5 * random.randint(6, 90), random.randint(5, 80))
        for i in range(280)
    ]
    return {"doctors": doctors, "patients": patients, "visits": visits}


KINDS = ("tools", "kitchen", "garden", "toys", "lighting", "office")
GOODS = """
kettle drill lamp rake puzzle stapler hammer pan trowel kite lantern binder saw bowl hose robot torch desk
"""
QUALITIES = """
steel compact oak folding silent red deluxe pocket solar classic
"""
STATES = ("delivered", "shipped", "returned", "cancelled")


def shop_rows(random: Random) -> dict[str, Rows]:
    names = random.sample([f"{quality} {good}" for quality in QUALITIES.split() for good in GOODS.split()], 80)
    suppliers: Rows = [
        (i + 1, name, _pick(random, COUNTRIES), round(random.uniform(1, 5), 1), random.randint(3, 300))
        for i, name in enumerate(_shuffled(random, LAST))
    ]
    products: Rows = [
        (
            i + 1,
            name,
            random.randint(1, 25),
            _pick(random, KINDS),
            random.randint(2, 240),
            random.randint(0, 400),
            random.randint(50, 900),
        )
        for i, name in enumerate(names)
    ]
    orders: Rows = [
        (i + 1, random.randint(1, 74), _pick(random, STATES), random.randint(1, 25), random.randint(1, 60))
        for i in range(330)
    ]
    return {"suppliers": suppliers, "products": products, "orders": orders}
