"""Audit duplicates within train, rows that occur in two splits, and inputs with two targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Literal

from fulltune.data.duplicates import THRESHOLD, NearIndex, fold, is_contained, normalize, similarity
from fulltune.data.findings import LISTED, ExampleLike, Finding, Level, apart, percent, rows, shorten, some

#: Fraction of evaluation rows that may also occur in train: these are left out. Above it, the run stops, because the
#: split itself is doubtful (``docs/decisions/0002``).
TOLERATED_LEAKS = 0.05

#: Words of the finding about leaks, by which a terminal recognizes it among the messages of a record.
LEAKED = "of eval also occur in train with the same target"

#: Inputs whose targets a message shows, targets of each, and characters of a text.
_SHOWN, _TARGETS, _LENGTH = 2, 3, 60

#: Fewest words of a target that two questions hardly share by chance, and rows of one target that are compared.
_ANSWER_WORDS, _COMPARED = 3, 200

MatchKind = Literal["exact", "normalized", "near"]

_WORDS: Mapping[MatchKind, str] = {
    "exact": "identical to",
    "normalized": "equal, except for case, whitespace, punctuation, and invisible or look-alike characters, to",
    "near": f"nearly equal (Jaccard ≥ {THRESHOLD} of character 5-grams, at most one word in 20 differs, or a few words "
    "are added to the same question with the same answer) to",
}


@dataclass(frozen=True)
class Entry:
    """A row for comparison: its text, and its target as folded and as written.

    For tasks without input, the text is the target.
    """

    id: str
    text: str
    target: str = ""
    written: str = ""

    @classmethod
    def of(cls, example: ExampleLike) -> Entry:
        target = example.target if isinstance(example.target, str) else "\n".join(sorted(example.target))
        return cls(example.id, example.input, fold(target), target) if example.input else cls(example.id, target)

    @cached_property
    def normal(self) -> str:
        return normalize(self.text)


@dataclass(frozen=True)
class Match:
    """A row, and an earlier row with the same input in one of three senses."""

    kind: MatchKind
    entry: Entry
    other: Entry
    similarity: float = 1.0

    @property
    def same_target(self) -> bool:
        return self.entry.target == self.other.target

    @property
    def differs_in_numbers(self) -> bool:
        """True if the texts differ only in their numbers: often another record, not a copy."""
        return self.kind == "near" and _without_numbers(self.entry) == _without_numbers(self.other)

    def to_list(self) -> list[str | float]:
        return [self.entry.id, self.other.id, self.kind, round(self.similarity, 3)]


def _without_numbers(entry: Entry) -> list[str]:
    return [word for word in entry.normal.split() if not any(map(str.isdigit, word))]


@dataclass
class Seen:
    """An index of rows: for every text, the first row with each target.

    Attributes:
        has_answers: Targets are texts. Rows with the same target of several words, whose inputs differ in a few words
            before or after, are then near: the target shows that those words mean nothing.
    """

    has_answers: bool = False
    _exact: dict[str, dict[str, Entry]] = field(default_factory=dict)
    _normal: dict[str, dict[str, Entry]] = field(default_factory=dict)
    _near: NearIndex = field(default_factory=NearIndex)
    _by_target: dict[str, list[Entry]] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        if entry.normal not in self._normal:
            self._near.add(entry.normal)
        alike = self._by_target.setdefault(entry.target, [])
        if len(alike) < _COMPARED:
            alike.append(entry)
        self._exact.setdefault(entry.text, {}).setdefault(entry.target, entry)
        self._normal.setdefault(entry.normal, {}).setdefault(entry.target, entry)

    def match(self, entry: Entry) -> Match | None:
        """Return the closest row with the same input and target, otherwise the closest with the same input, or None."""
        same = self._matches(entry, lambda targets: targets.get(entry.target))
        other = self._matches(entry, lambda targets: next(iter(targets.values()), None))
        return next(chain(same, self._extended(entry), other) if entry.target in self._by_target else other, None)

    def _extended(self, entry: Entry) -> Iterator[Match]:
        """Yield rows with the same target whose input has a few words more or fewer."""
        if not self.has_answers or len(entry.target.split()) < _ANSWER_WORDS:
            return
        for other in self._by_target[entry.target]:
            if is_contained(entry.normal, other.normal):
                yield Match("near", entry, other, similarity(entry.normal, other.normal))

    def conflicts(self) -> list[list[Entry]]:
        """Return, for each input with several targets, a row of each target."""
        return [list(targets.values()) for targets in self._normal.values() if len(targets) > 1]

    def _matches(self, entry: Entry, choose: Callable[[Mapping[str, Entry]], Entry | None]) -> Iterator[Match]:
        if match := choose(self._exact.get(entry.text, {})):
            yield Match("exact", entry, match)
        if match := choose(self._normal.get(entry.normal, {})):
            yield Match("normalized", entry, match)

        def chosen(position: int) -> Entry | None:
            return choose(self._normal[self._near.texts[position]])

        for position, likeness in self._near.near(entry.normal, lambda position: chosen(position) is not None):
            if match := chosen(position):
                yield Match("near", entry, match, likeness)


@dataclass(frozen=True)
class Overlap:
    """The findings, and the ids of evaluation rows whose input and target also occur in train (``leaked``)."""

    findings: tuple[Finding, ...]
    leaked: tuple[str, ...]


def overlap(
    train: Sequence[Entry],
    valid: Sequence[Entry],
    evaluation: Sequence[Entry],
    *,
    allow_leaks: bool,
    one_answer: bool,
    own_split: bool = False,
    paraphrases: bool = False,
    has_answers: bool = False,
) -> Overlap:
    """Compare every row of train with the earlier ones, and the splits with each other.

    Args:
        train: Rows of train.
        valid: Rows of valid; may be empty.
        evaluation: Rows of eval.
        allow_leaks: Rows of eval that also occur in train are intended, and count.
        one_answer: True if an input should have one target (a label, a query), so that two contradict each other.
        own_split: The rows of eval were held out of train here: leaks are then no fault of the split, however many.
        paraphrases: Nearly equal inputs are wanted in train: wordings of one question, or other values in it.
        has_answers: Targets are texts, not classes.
    """
    in_train = Seen(has_answers)
    within = list[Match]()
    for entry in train:
        within += filter(None, [in_train.match(entry)])
        in_train.add(entry)
    in_valid = Seen(has_answers)
    for entry in valid:
        in_valid.add(entry)
    across = _matches(evaluation, in_train)
    same = [match for match in across if match.same_target]
    leaks = [match for match in same if not match.differs_in_numbers]
    findings = [
        *_within(within, len(train), paraphrases),
        *_conflicts(in_train.conflicts(), one_answer),
        *_leaks(leaks, len(evaluation), allow_leaks, own_split),
        *_number_variants([match for match in same if match.differs_in_numbers]),
        *_other_targets([match for match in across if not match.same_target], one_answer),
        *_curve("valid", "train", _matches(valid, in_train)),
        *_curve("eval", "valid", _matches(evaluation, in_valid)),
    ]
    return Overlap(tuple(findings), tuple(match.entry.id for match in leaks))


def _matches(entries: Sequence[Entry], seen: Seen) -> list[Match]:
    return [match for entry in entries if (match := seen.match(entry))]


def _within(matches: Sequence[Match], total: int, paraphrases: bool) -> Iterator[Finding]:
    """Yield findings about repeated rows; the same input with another target is in :func:`_conflicts` instead."""
    for kind, words in _WORDS.items():
        fix = "remove the duplicates, unless their weight is intended"
        if paraphrases and kind == "near":
            fix = "keep them: other wordings of a question, or other values in it, teach what changes in the query"
        chosen = [match for match in matches if match.kind == kind and (kind == "near" or match.same_target)]
        fraction = percent(len(chosen), total)
        yield from _finding(
            f"{kind}_duplicates",
            "warning" if kind != "near" and 100 * len(chosen) >= total else "info",
            f"{rows(len(chosen), 'be', 'train')} {words} an earlier row ({fraction})",
            "train",
            chosen,
            fix=fix,
        )


def _leaks(matches: Sequence[Match], total: int, allowed: bool, own_split: bool) -> Iterator[Finding]:
    kinds = Counter(match.kind for match in matches)
    split = ", ".join(f"{kinds[kind]} {kind}" for kind in _WORDS if kinds[kind])
    text = f"{len(matches)} of {rows(total)} {LEAKED} ({split})"
    left = total - len(matches)
    too_many = len(matches) > TOLERATED_LEAKS * total
    fix = "remove those rows from train or eval"
    level: Level
    if allowed:
        level, effect = "warning", "they count in the deciding scores, because data.allow_leaks is true"
    elif own_split and left:
        level, effect = "warning", f"they are left out of the deciding scores, for which {left} remain"
        fix = "set data.allow_leaks: true if such repetitions also occur in use (they then count)"
    elif too_many:
        level, effect = "error", f"more than {TOLERATED_LEAKS:.0%}, so that scores would be inflated"
        fix += (
            ", split them by data.group, or set data.allow_leaks: true if such repetitions also occur in use "
            "(they then count, and scores without them are added)"
        )
    else:
        level, effect = "warning", "they are left out of the deciding scores"
    yield from _finding("leaks", level, f"{text}: {effect}", "eval", matches, fix=fix)


def _number_variants(matches: Sequence[Match]) -> Iterator[Finding]:
    """Yield a finding about rows that differ only in numbers: records of one form, or copies with another date."""
    yield from _finding(
        "number_variants",
        "warning",
        f"{rows(len(matches))} of eval and a row of train differ in numbers only, and have the same target",
        "eval",
        matches,
        fix="remove those rows from train or eval if the numbers do not matter for the target",
    )


def _other_targets(matches: Sequence[Match], one_answer: bool) -> Iterator[Finding]:
    """Yield findings about rows of eval whose input also occurs in train with another target.

    Two targets of the same input are a contradiction; those of near inputs are not.
    """
    same = [match for match in matches if match.kind != "near"]
    near = [match for match in matches if match.kind == "near"]
    yield from _finding(
        "eval_conflicts",
        "warning" if one_answer else "info",
        f"{rows(len(same))} of eval and a row of train have the same input, but different targets: "
        + _shown([[match.other, match.entry] for match in same]),
        "eval",
        same,
        fix="check them: one of the two targets is likely wrong" if one_answer else "",
    )
    yield from _finding(
        "near_inputs",
        "info",
        f"{rows(len(near))} of eval and a row of train have nearly the same input, but different targets: "
        + _shown([[match.other, match.entry] for match in near]),
        "eval",
        near,
    )


def _curve(split: str, other: str, matches: Sequence[Match]) -> Iterator[Finding]:
    message = f"{rows(len(matches), 'have')} an input that also occurs in {other}, exactly or nearly"
    yield from _finding(f"{split}_{other}_overlap", "info", f"{split}: {message}", split, matches)


def _finding(
    kind: str, level: Level, message: str, split: str, matches: Sequence[Match], fix: str = ""
) -> Iterator[Finding]:
    if matches:
        yield Finding(
            kind=kind,
            level=level,
            message=message,
            fix=fix,
            split=split,
            count=len(matches),
            ids=some([match.entry.id for match in matches]),
            details={
                "kinds": dict(Counter(match.kind for match in matches)),
                "same_target": sum(match.same_target for match in matches),
                "pairs": [match.to_list() for match in matches[:LISTED]],
            },
        )


def _conflicts(conflicts: Sequence[Sequence[Entry]], one_answer: bool) -> Iterator[Finding]:
    if not conflicts:
        return
    count = len(conflicts)
    yield Finding(
        kind="conflicting_targets",
        level="warning" if one_answer else "info",
        message=f"{count} {'input of train has' if count == 1 else 'inputs of train have'} more than one target: "
        + _shown(conflicts),
        fix="check them: one of the targets is likely wrong" if one_answer else "",
        split="train",
        count=count,
        ids=some([entry.id for entries in conflicts for entry in entries]),
        details={"inputs": [[[entry.id, entry.target] for entry in entries] for entries in conflicts[:LISTED]]},
    )


def _shown(groups: Sequence[Sequence[Entry]]) -> str:
    """Return the first groups of rows of one input with their targets, all shortened, and the count of the others."""
    more = len(groups) - _SHOWN
    return "; ".join(map(_in_words, groups[:_SHOWN])) + (f"; and {more} more" if more > 0 else "")


def _in_words(entries: Sequence[Entry]) -> str:
    """Return e.g. ``'May I leave?' is 'yes' (train.csv:3), 'no' (train.csv:8)``."""
    targets = apart([" ".join(entry.written.split()) for entry in entries[:_TARGETS]], _LENGTH)
    named = [f"{target!r} ({entry.id})" for target, entry in zip(targets, entries, strict=False)]
    more = [f"{len(entries) - _TARGETS} more"] if len(entries) > _TARGETS else []
    return f"{shorten(' '.join(entries[0].text.split()), _LENGTH)!r} is {', '.join([*named, *more])}"
