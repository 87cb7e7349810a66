"""Audit the tokenized rows: lengths, truncation, unknown tokens, and targets that decoding does not restore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np

from fulltune.config import DataConfig
from fulltune.data.findings import (
    LONE_TOKEN_KIND,
    REDUCED_KIND,
    SHORT_ANSWERS_KIND,
    ExampleLike,
    Finding,
    Level,
    percent,
    rows,
    some,
)
from fulltune.data.values import is_blank
from fulltune.errors import abridged


class FeaturesLike(Protocol):
    """A training sequence (:class:`fulltune.tasks.base.Features`)."""

    @property
    def input_ids(self) -> list[int]: ...
    @property
    def labels(self) -> list[int] | int | list[float]: ...
    @property
    def removed(self) -> Mapping[str, int]: ...


E = TypeVar("E", bound=ExampleLike)

#: Fraction of truncated rows, or of unknown tokens, from which a warning is issued.
_NOTABLE = 0.01
#: Fraction of targets that lose characters from which training is pointless.
_HOPELESS = 0.5
#: Kinds of findings about rows that exceed the model's positions.
LENGTH_KINDS = ("truncated", "nothing_to_learn", "short_answers", REDUCED_KIND)
#: Words of the finding about truncated rows.
TRUNCATED = "longer than the window and truncated"
#: Positions from which a model counts as unlimited: relative positions, and limits that are placeholders.
_UNLIMITED = 1_000_000
#: Number of texts per call of the tokenizer.
_BATCH = 256


def length_findings(
    split: str,
    examples: Sequence[E],
    encode: Callable[[E], Sequence[FeaturesLike]],
    settings: DataConfig,
    positions: int,
) -> Iterator[Finding]:
    """Yield findings about lengths before truncation, truncated rows, and rows without any label left.

    Args:
        split: Name of the split.
        examples: Its rows.
        encode: Function from an example to its training sequences.
        settings: Limits.
        positions: Longest input of the model in tokens.
    """
    widest = 0
    lengths = list[int]()
    truncated = list[str]()
    lost = list[str]()
    parts = Counter[str]()
    for example in examples:
        features = encode(example)
        missing = sum((Counter(feature.removed) for feature in features), Counter[str]())
        lengths.append(sum(len(feature.input_ids) for feature in features) + missing.total())
        parts += missing
        widest = max([widest, *(len(feature.input_ids) for feature in features)])
        if not any(map(_has_label, features)):
            lost.append(example.id)
        elif missing:
            truncated.append(example.id)
    yield _lengths(split, lengths)
    is_of_model = positions <= (settings.max_length or widest)
    if set(parts) == {"answer"}:  # data.max_target_length cuts it too
        is_of_model = positions <= widest
    limit = _Limit(settings.max_length, positions, is_of_model)
    if truncated:
        yield _truncated(split, truncated, parts, len(examples), limit)
    if lost:
        yield _lost(split, lost, len(examples), settings.max_truncated, limit)


@dataclass(frozen=True)
class _Limit:
    """The limit on the length of sequences, which the config or the model sets.

    Attributes:
        asked: ``data.max_length``, or None for the default.
        positions: Longest input of the model in tokens.
        is_of_model: No config makes the window longer.
    """

    asked: int | None
    positions: int
    is_of_model: bool

    @property
    def words(self) -> str:
        if self.is_of_model:
            asked = f", less than data.max_length: {self.asked}" if (self.asked or 0) > self.positions else ""
            return f"the model's limit: {self.positions:,} tokens{asked}"
        return f"data.max_length: {self.asked}" if self.asked else ""

    def fix(self, keys: str, shorten: str) -> str:
        """Return how fewer tokens are lost: by keys of the config, as far as the model has positions."""
        if self.is_of_model:
            return f"{shorten}, or choose a model with more than {self.positions:,} positions"
        most = f" (the model has {self.positions:,} positions)" if self.positions < _UNLIMITED else ""
        return f"raise {keys}{most}, or {shorten}"


def _has_label(features: FeaturesLike) -> bool:
    """Return True if a label with a loss is left."""
    labels = features.labels
    return isinstance(labels, int) or any(label != -100 for label in labels)


def _lengths(split: str, lengths: Sequence[int]) -> Finding:
    low, median, p95, high = (int(value) for value in np.percentile(lengths, [0, 50, 95, 100]))
    return Finding(
        kind="lengths",
        level="info",
        message=f"{split}: {low} to {high} tokens per row, median {median}, 95% at most {p95}",
        split=split,
        count=len(lengths),
        details={"min": low, "median": median, "p95": p95, "max": high, "tokens": int(sum(lengths))},
    )


def _truncated(split: str, ids: Sequence[str], parts: Mapping[str, int], total: int, limit: _Limit) -> Finding:
    fraction = ", ".join(filter(None, [percent(len(ids), total), limit.words]))
    lost = ", ".join(f"{count:,} tokens of the {part}" for part, count in parts.items())
    prompts = "; their prompts lack these tokens too" if split == "eval" and set(parts) - {"answer"} else ""
    return Finding(
        kind="truncated",
        level="warning" if len(ids) > _NOTABLE * total else "info",
        message=f"{rows(len(ids), 'be', split)} {TRUNCATED} ({fraction}) by {lost}{prompts}",
        fix=limit.fix("data.max_length (or data.max_target_length)", "shorten the rows"),
        split=split,
        count=len(ids),
        ids=some(ids),
        details={"tokens": dict(parts)},
    )


def _lost(split: str, ids: Sequence[str], total: int, allowed: float, limit: _Limit) -> Finding:
    too_many = len(ids) > allowed * total
    return Finding(
        kind="nothing_to_learn",
        level="error" if too_many else "warning",
        message=f"{rows(len(ids), 'have', split)} no label left after truncation ({percent(len(ids), total)}; "
        f"data.max_truncated allows {100 * allowed:g}%)",
        fix=limit.fix("data.max_length", "shorten the inputs"),
        split=split,
        count=len(ids),
        ids=some(ids),
    )


def short_answer_finding(split: str, ids: Sequence[str], left: Sequence[int], cap: int) -> Iterator[Finding]:
    """Yield a finding about rows whose prompt leaves fewer positions than an answer may need.

    Args:
        split: Name of the split.
        ids: Ids of its rows.
        left: Positions left after each prompt, in tokens.
        cap: ``evaluation.max_new_tokens``.
    """
    short = [(name, count) for name, count in zip(ids, left, strict=True) if count < cap]
    if short:
        yield Finding(
            kind=SHORT_ANSWERS_KIND,
            level="warning" if len(short) > _NOTABLE * len(ids) else "info",
            message=f"{rows(len(short), 'have', split)} fewer than evaluation.max_new_tokens: {cap} positions left for "
            f"the answer (at least {min(count for _, count in short)}): it ends at the model's last position",
            fix="lower evaluation.max_new_tokens, shorten the rows, or choose a model with more positions",
            split=split,
            count=len(short),
            ids=some([name for name, _ in short]),
        )


def lone_token_finding(split: str, ids: Sequence[str], count: int) -> Iterator[Finding]:
    """Yield a finding about rows of a single token without a preceding token: the model predicts nothing for them.

    Args:
        split: Name of the split.
        ids: Ids of these rows.
        count: Number of rows of the split.
    """
    if ids:
        yield Finding(
            kind=LONE_TOKEN_KIND,
            level="error" if len(ids) == count else "warning",
            message=f"{rows(len(ids), 'be', split)} a single token, and the tokenizer adds none before it: there is "
            "nothing to predict or score",
            fix="join short documents, or choose a model whose tokenizer adds a token at the start",
            split=split,
            count=len(ids),
            ids=some(ids),
        )


def window_finding(field: str, requested: int, window: int) -> Iterator[Finding]:
    """Yield a finding about a limit in the config that exceeds the model's."""
    if requested > window:
        yield Finding(
            kind=REDUCED_KIND,
            level="info",
            message=f"{field} is {requested}, but the model has {window} positions: {window} is used",
            fix=f"lower {field}, or choose a model with more positions",
            details={"key": field, "asked": requested, "used": window},
        )


def unknown_finding(
    split: str, field: str, ids: Sequence[str], texts: Sequence[str], tokenizer: Any
) -> Iterator[Finding]:
    """Yield a finding about tokens that are not in the vocabulary.

    If the unknown token is also the end of text (GPT-2), it cannot be detected; byte-level vocabularies have no unknown
    tokens.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown == getattr(tokenizer, "eos_token_id", None):
        return
    counts = [(tokens.count(unknown), len(tokens)) for tokens in tokenized(texts, tokenizer)]
    bad = sum(count for count, _ in counts)
    total = sum(length for _, length in counts)
    if not bad:
        return
    hit = [number for number, (count, _) in enumerate(counts) if count]
    characters = sorted(set(chain.from_iterable(texts[number] for number in hit[:50])) - {" ", "\n", "\t", "\r"})
    strange = [
        sign for sign, tokens in zip(characters, tokenized(characters, tokenizer), strict=True) if unknown in tokens
    ]
    yield Finding(
        kind=f"unknown_{field}_tokens",
        level="warning" if bad >= _NOTABLE * total else "info",
        message=f"{percent(bad, total)} of the {field} tokens of {split} are unknown, in {rows(len(hit))}"
        + (f" (among their characters: {' '.join(strange[:12])})" if strange else ""),
        fix="choose a checkpoint whose vocabulary has them, or replace them",
        split=split,
        count=len(hit),
        ids=some([ids[number] for number in hit]),
        details={"unknown": bad, "tokens": total, "characters": strange},
    )


def round_trip_finding(split: str, ids: Sequence[str], targets: Sequence[str], tokenizer: Any) -> Iterator[Finding]:
    """Yield a finding about targets that encoding and decoding does not restore (whitespace aside).

    The model cannot write such targets. Special tokens are checked in :func:`special_token_findings`.
    """
    special = _special_tokens(tokenizer)
    changed = list[str]()
    lost = Counter[str]()
    harmed = 0
    for name, target, tokens in zip(ids, targets, tokenized(targets, tokenizer), strict=True):
        decoded = tokenizer.decode(tokens, skip_special_tokens=True)
        if target.split() == decoded.split() or any(token in target for token in special):
            continue
        changed.append(name)
        gone = Counter("".join(target.split()).casefold()) - Counter("".join(decoded.split()).casefold())
        harmed += bool(gone)
        lost.update(gone.keys())
    if not changed:
        return
    signs = [sign for sign, _ in lost.most_common(12)]
    loss = f"lost: {' '.join(signs)}" if signs else "only case or order changes"
    yield Finding(
        kind="targets_not_recoverable",
        level="error" if harmed > _HOPELESS * len(targets) else "warning",
        message=f"{rows(len(changed), 'have', split)} a target that encode → decode does not restore "
        f"({percent(len(changed), len(targets))}; {loss})",
        fix="choose a checkpoint whose vocabulary has these characters, or replace them in the targets",
        split=split,
        count=len(changed),
        ids=some(changed),
        details={"characters": signs, "rows_that_lose_characters": harmed},
    )


def special_token_findings(split: str, ids: Sequence[str], targets: Sequence[str], tokenizer: Any) -> Iterator[Finding]:
    """Yield findings about targets that contain special tokens.

    The tokenizer reads the end-of-text string as the place to stop; decoding drops all special tokens.
    """
    end = getattr(tokenizer, "eos_token", None)
    special = _special_tokens(tokenizer)
    spelled = [[token for token in special if token in target] for target in targets]
    empty = [number for number, target in enumerate(targets) if spelled[number] and is_blank(_without(target, special))]
    ended = [number for number in range(len(ids)) if end in spelled[number] and number not in set(empty)]
    others = [number for number in range(len(ids)) if spelled[number] and number not in {*empty, *ended}]
    if empty:
        yield _special(
            "target_of_special_tokens",
            "error",
            f"{rows(len(empty), 'have', split)} a target of only special tokens "
            f"({_tokens(spelled, empty)}), which decoding drops: nothing is left to learn",
            "write the text that is meant, or remove the rows",
            (split, [ids[number] for number in empty]),
        )
    if ended:
        yield _special(
            "end_of_text_in_target",
            "error",
            f"{rows(len(ended), 'have', split)} the end-of-text string {end!r} inside the target: "
            "it would be learned as the place to stop",
            "remove it from the targets; the end is added automatically",
            (split, [ids[number] for number in ended]),
        )
    if others:
        yield _special(
            "special_tokens_in_target",
            "error" if len(others) > _HOPELESS * len(ids) else "warning",
            f"{rows(len(others), 'have', split)} special tokens of the tokenizer inside the target "
            f"({_tokens(spelled, others)}), which decoding drops",
            "remove them from the targets, or choose a checkpoint that reads them as text",
            (split, [ids[number] for number in others]),
        )


def _special_tokens(tokenizer: Any) -> list[str]:
    """Return the texts of all tokens that decoding drops, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {*getattr(tokenizer, "all_special_tokens", ()), *(str(token) for token in added if token.special)}
    return sorted(filter(None, names), key=lambda name: (-len(name), name))


def _without(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text


def _tokens(spelled: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    return abridged([repr(token) for token in dict.fromkeys(token for number in numbers for token in spelled[number])])


def _special(kind: str, level: Level, message: str, fix: str, where: tuple[str, Sequence[str]]) -> Finding:
    split, ids = where
    return Finding(kind=kind, level=level, message=message, fix=fix, split=split, count=len(ids), ids=some(ids))


def unread_finding(split: str, ids: Sequence[str], targets: Sequence[str], tokenizer: Any) -> Iterator[Finding]:
    """Yield a finding about targets without any token: some tokenizers drop control characters, for example."""
    read = zip(ids, targets, tokenized(targets, tokenizer), strict=True)
    unread = [name for name, target, tokens in read if target and not tokens]
    if unread:
        yield _special(
            "unread_targets",
            "error",
            f"{rows(len(unread), 'have', split)} a target that the tokenizer turns into no token",
            "write the text that is meant, remove the rows, or choose another checkpoint",
            (split, unread),
        )


def tokenized(texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the token ids of each text, without special tokens."""
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        # verbose=False: a document longer than the window needs no warning, windows are cut later.
        yield from tokenizer(batch, add_special_tokens=False, verbose=False).input_ids
