"""Folk tales of one valley, told by one narrator in a northern English dialect: example data for language models.

All are written by hand, none from a template: tales share a narrator, people and places, but no run of eight words.
A compressor that has read the tales of ``train`` still needs 2.4 bits per byte for those of ``eval``
(`benchmarks/demos.py`), so what a model gains on them is the dialect and the voice, not repeated text.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from random import Random

#: Each is a file ``tales_<theme>.txt``.
THEMES = ("beasts", "crumbs", "dead", "garth", "hearth", "river", "trades", "wits")
#: Fraction of the tales of each theme that go to eval.
EVAL_FRACTION = 0.2


def make_tales(*, seed: int = 17) -> dict[str, list[dict[str, str]]]:
    """Return all tales, of 70 to 280 words, divided between train and eval.

    Args:
        seed: Seed of the order and of the split. The same seed gives the same rows, in every process.

    Returns:
        ``train`` and ``eval``: rows with ``id``, ``title``, ``text`` (paragraphs separated by an empty line) and
        ``theme``. A fifth of each theme is in eval.
    """
    random = Random(f"tales {seed}")
    splits: dict[str, list[dict[str, str]]] = {"train": [], "eval": []}
    for theme in THEMES:
        tales = list(_tales(theme))
        random.shuffle(tales)
        cut = round(EVAL_FRACTION * len(tales))
        splits["eval"] += tales[:cut]
        splits["train"] += tales[cut:]
    for split in splits.values():
        random.shuffle(split)
    return splits


def _tales(theme: str) -> Iterator[dict[str, str]]:
    source = files("demo").joinpath(f"tales_{theme}.txt").read_text(encoding="utf-8")
    for number, tale in enumerate(f"\n{source}".split("\n# ")[1:], start=1):
        title, _, text = tale.partition("\n")
        yield {"id": f"{theme}-{number:02}", "title": title.strip(), "text": text.strip(), "theme": theme}
