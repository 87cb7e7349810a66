"""Clauses of fictional contracts that bind one of the two parties: example data for classification.

The label is the party that has to act. Nearly every clause names both parties and makes a statement about each, in
words that are the same for both: one must act, the other is free to. Circumstances stand before a party and between the
party and its verb, so that no three words in a row show who is bound: it takes the order of the words. Statements are
active or passive, with plain and negated verbs. The party that is bound is named first in a plain clause, and last if
the clause opens with a concession ("although …, by day, …"). Other clauses name a party as an exception or as "the
former", and some add what a third party has to do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from demo.grammar import Grammar, Writer, polish
from fulltune.data.demo.files import split_contracts

#: The party that is bound.
LABELS = ("author", "company")
#: Number of clauses of one contract.
CLAUSES = 15
#: Fraction of the wordings that one contract uses.
HOUSE_STYLE = 0.6
#: Fraction of the clauses that bind one party by an exception ("no party except …").
EXCEPTION = 0.05
#: Fraction of the clauses that name both parties first, and say of "the former" or "the latter" what it has to do.
REFERENCE = 0.05
#: Fraction of the other clauses that also say what a third party must or need not do. Those above always do: batches
#: hold rows of similar length, and batches of one kind of clause alone are hard to learn from.
THIRD_PARTY = 0.1
#: Fraction of the other clauses that begin with a concession ("although …, by day, …"). The party that is bound is
#: named last in them, and first in all others.
CONCESSION = 0.34

PARTIES = ("the author", "the company")


def make_contracts(n: int = 1500, *, seed: int = 17, label_noise: float = 0.0) -> list[dict[str, str]]:
    """Return ``n`` clauses with their label and their contract.

    Args:
        n: Number of clauses; there is one contract for every fifteen.
        seed: The same seed gives the same clauses, in every process.
        label_noise: Fraction of labels replaced by another random one; the texts stay the same.

    Returns:
        Rows with ``text``, ``label`` (one of :data:`LABELS`) and ``contract``; no text occurs twice.
    """
    random = Random(f"contracts {seed}")
    rows: dict[str, dict[str, str]] = {}
    contract = 0
    while len(rows) < n:
        contract += 1
        writer = Writer(Grammar.load("contracts"), random, share=HOUSE_STYLE)
        for label in random.choices(LABELS, k=CLAUSES):
            text = polish(_clause(writer, label) + ".")
            rows.setdefault(text, {"text": text, "label": label, "contract": f"Contract {contract}"})
    return _with_noise(list(rows.values())[:n], label_noise, Random(f"noise {seed}"))


def _clause(writer: Writer, label: str) -> str:
    party, other = PARTIES if label == "author" else PARTIES[::-1]
    acts = _Acts(writer)
    kind = writer.random.random()
    if kind < EXCEPTION:
        return _with_third_party(writer, acts, _statement(writer, "exception", acts, party))
    if kind < EXCEPTION + REFERENCE:
        return _with_third_party(writer, acts, _reference(writer, acts, party, other))
    bound, free = _statement(writer, "bound", acts, party), _statement(writer, "free", acts, other)
    if writer.random.random() < CONCESSION:
        clause = _expand(writer, "concession", {"S": free, "T": bound})
    else:
        clause = _expand(writer, "plain", {"S": bound, "T": free})
    return _with_third_party(writer, acts, clause) if writer.random.random() < THIRD_PARTY else clause


def _with_third_party(writer: Writer, acts: _Acts, clause: str) -> str:
    """Return a clause before or after a statement about a third party."""
    rule = writer.random.choice(("other bound", "other free"))
    third = _statement(writer, rule, acts, writer.random.choice(PARTIES))
    return ". ".join(writer.random.sample((clause, third), 2))


def _reference(writer: Writer, acts: _Acts, party: str, other: str) -> str:
    """Return a clause that names a party by the order in which both are named."""
    if writer.random.random() < 0.5:
        return _statement(writer, "first is bound", acts, party, F=party, L=other)
    return _statement(writer, "last is bound", acts, party, F=other, L=party)


@dataclass
class _Acts:
    """Acts of one clause: statements are about the same act or about another one."""

    writer: Writer
    last: dict[str, str] | None = None

    def next(self) -> dict[str, str]:
        if self.last is None or self.writer.random.random() < 0.5:
            do, done = _expand(self.writer, "act", {}).split(", ")
            things = _expand(self.writer, "things", {})
            self.last = {"do": f"{do} {things}", "done": done, "things": things}
        return self.last


def _statement(writer: Writer, rule: str, acts: _Acts, party: str, **values: str) -> str:
    other = PARTIES[party == PARTIES[0]]
    return _expand(writer, rule, {"P": party, "Q": other, **acts.next(), **values})


def _expand(writer: Writer, rule: str, values: dict[str, str]) -> str:
    writer.values = values
    return writer.expand(f"{{{rule}}}")


def _with_noise(rows: list[dict[str, str]], share: float, random: Random) -> list[dict[str, str]]:
    for index in sorted(random.sample(range(len(rows)), round(share * len(rows)))):
        others = [label for label in LABELS if label != rows[index]["label"]]
        rows[index] = rows[index] | {"label": random.choice(others)}
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Write other rows than those of the package as ``train.jsonl`` and ``eval.jsonl``."""
    parser = argparse.ArgumentParser(prog="python -m demo.contracts", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("-n", type=int, default=4000, help="number of clauses")
    options = parser.parse_args(arguments)
    rows = make_contracts(options.n, seed=options.seed)
    splits = split_contracts([json.dumps(row).encode() + b"\n" for row in rows])
    for name, lines in zip(("train", "eval"), splits, strict=True):
        (options.folder / f"{name}.jsonl").write_bytes(b"".join(lines))


if __name__ == "__main__":
    main()
