"""Audit the classes: their numbers of rows, and those that cannot be learned or scored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fulltune.data.findings import ExampleLike, Finding, Level, percent, quoted, rows, shorten, some
from fulltune.data.spellings import places, similar_to, spelled, spelling_findings
from fulltune.runtime.alphabetical import in_order

#: Fraction of evaluation rows with a label that train lacks, above which the run stops.
_TOLERATED = 0.01


def label_findings(
    train: Sequence[ExampleLike], evaluation: Sequence[ExampleLike], valid: Sequence[ExampleLike] = ()
) -> list[Finding]:
    """Return findings about labels.

    They cover class balance, labels that train lacks or has once, labels that are never scored, a single label, and
    spellings that suggest a mistake.
    """
    in_train = _count(train)
    in_eval = _count(evaluation)
    several = any(isinstance(example.target, tuple) for example in train)
    findings = [
        _balance(in_train, in_eval, _count(valid)),
        *_only_in("eval", in_train, evaluation),
        *_only_in("valid", in_train, valid),
    ]
    findings += spelling_findings(places(train, evaluation, valid), several)
    if several and not in_train:
        message = f"none of {rows(len(train), of='train')} has a label: nothing to learn"
        findings.append(Finding(kind="no_labels", level="error", message=message, split="train", fix="add labels"))
    if len(in_train) < 2 and not several:
        label = shorten(repr(next(iter(in_train), "")))
        message = f"all {rows(len(train), of='train')} have the label {label}: there is nothing to distinguish"
        findings.append(
            Finding(kind="one_label", level="error", message=message, split="train", fix="add other labels")
        )
    if lonely := in_order(label for label, count in in_train.items() if count == 1):
        verb = "has one row in train" if len(lonely) == 1 else "have one row in train"
        findings.append(_names("rare_labels", "warning", lonely, verb, "add rows: one is hardly enough to learn from"))
    if unscored := in_order(in_train.keys() - in_eval.keys()):
        verb = "never occurs in eval" if len(unscored) == 1 else "never occur in eval"
        findings.append(_names("unscored_labels", "info", unscored, f"of train {verb}"))
    return findings


def _labels(example: ExampleLike) -> tuple[str, ...]:
    return (example.target,) if isinstance(example.target, str) else example.target


def _count(examples: Sequence[ExampleLike]) -> Counter[str]:
    return Counter(label for example in examples for label in _labels(example))


def _balance(in_train: Counter[str], in_eval: Counter[str], in_valid: Counter[str]) -> Finding:
    splits = {"train": in_train, "eval": in_eval, "valid": in_valid}
    counts = {split: dict(labels.most_common()) for split, labels in splits.items()}
    message = f"{len(in_train)} labels in train"
    if in_train:
        ranked = in_train.most_common()
        most, high = ranked[0]
        least, low = ranked[-1]
        message += f": from {high} ({shorten(repr(most))}) down to {rows(low)} ({shorten(repr(least))})"
    return Finding(kind="class_balance", level="info", message=message, count=len(in_train), details={"counts": counts})


def _only_in(split: str, in_train: Counter[str], examples: Sequence[ExampleLike]) -> Iterator[Finding]:
    """Yield a finding about labels of ``eval`` or ``valid`` that train lacks."""
    lost = [example for example in examples if any(label not in in_train for label in _labels(example))]
    if not lost:
        return
    names = in_order({label for example in lost for label in _labels(example)} - in_train.keys())
    few = len(lost) / len(examples) < _TOLERATED
    effect = "can never be predicted" if split == "eval" else "counts as wrong"
    yield Finding(
        kind=f"labels_only_in_{split}",
        level="warning" if few or split == "valid" else "error",
        message=f"{rows(len(lost), 'have', split)} a label that train lacks ({percent(len(lost), len(examples))}), "
        f"which {effect}: {quoted(names)}",
        fix=_advice(names, in_train),
        split=split,
        count=len(lost),
        ids=some([example.id for example in lost]),
        details={"labels": names},
    )


def _advice(names: Sequence[str], in_train: Counter[str]) -> str:
    """Return the fix for labels that train lacks: spell them as in train, name the numbers, or add rows."""
    similar = next(((name, other) for name in names if (other := similar_to(name, in_train))), None)
    if similar:
        name, other = spelled(similar)
        return f"write {other}, as in train, where {name} means the same; otherwise add rows with these labels to train"
    if all(re.fullmatch(r"-[0-9.]+", label.strip()) for label in names):
        return "remove these rows if a negative number means an unknown label; otherwise add rows with it to train"
    numbers = [all(label.strip().isdecimal() for label in labels) for labels in (in_train, names)]
    if numbers[0] != numbers[1]:
        kinds = ("numbers", "text") if numbers[0] else ("text", "numbers")
        return f"labels of train are {kinds[0]}, these are {kinds[1]}: name the classes in data.label_names"
    return "add rows with these labels to train, or remove them from eval"


def kind_findings(kinds: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding if some splits write their labels as numbers and others as text: 1 and "1" are the same label.

    Args:
        kinds: The notation of each split; ``""`` if it is unknown.
    """
    known = {split: kind for split, kind in kinds.items() if kind}
    if len(set(known.values())) > 1:
        written = ", ".join(f"{split} as {kind}" for split, kind in known.items())
        yield Finding(
            kind="label_kinds",
            level="info",
            message=f"labels are written {written}: 1 and '1' are read as one label",
            fix="write them in one way",
        )


def _names(kind: str, level: Level, names: Sequence[str], words: str, fix: str = "") -> Finding:
    return Finding(
        kind=kind,
        level=level,
        message=f"{len(names)} {'label' if len(names) == 1 else 'labels'} {words}: {quoted(names)}",
        fix=fix,
        split="train",
        count=len(names),
        details={"labels": list(names)},
    )
