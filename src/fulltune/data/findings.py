"""Define the findings of the audit, as written to ``audit.json``."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import Any, Literal, Protocol

from pydantic import Field

from fulltune.errors import DataError, Problem, abridged, on_one_line
from fulltune.records.run import AuditSummary, Model
from fulltune.runtime.graphemes import clip

Level = Literal["error", "warning", "info"]

#: Number of ids that a finding lists; ``count`` is the total.
LISTED = 20


#: Kind of findings about rows whose reference result cannot be compared.
UNSCORED_KIND = "reference_queries_fail"

#: Kind of findings about rows of a single token, for which nothing is predicted.
LONE_TOKEN_KIND = "single_tokens"

#: Kind of findings about prompts that leave fewer positions than an answer may need.
SHORT_ANSWERS_KIND = "short_answers"


#: Kinds of findings by how much they distort the scores, the most first: classes that are divided by their spelling,
#: rows that give the answer away, rows without or with a wrong answer, rows that are not read to their end.
_DISTORTING = (
    "similar_labels",
    "padded_labels",
    "joined_labels",
    "vector_labels",
    "mixed_labels",
    "missing_labels",
    "leaks",
    "labels_only_in_eval",
    "eval_conflicts",
    "conflicting_targets",
    "nothing_to_learn",
    "truncated",
    "exact_duplicates",
    "normalized_duplicates",
)


#: Kind of findings about values of the config that the model cannot take.
REDUCED_KIND = "window"


class ExampleLike(Protocol):
    """A row as the task sees it (:class:`fulltune.tasks.base.Example`)."""

    @property
    def id(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def target(self) -> str | tuple[str, ...]: ...


class Finding(Model):
    """One finding of the audit.

    Attributes:
        kind: Identifier in snake_case, stable across versions.
        level: ``error`` stops the run, ``warning`` should be checked, ``info`` is for information.
        message: One sentence with the counts.
        fix: How to fix it, as an instruction.
        split: ``train``, ``valid`` or ``eval``; for a pair of splits, the one whose ids are listed.
        count: Number of rows.
        ids: Ids of the first rows.
        details: Numbers and pairs behind the message.
    """

    kind: str
    level: Level
    message: str
    fix: str = ""
    split: str = ""
    count: int = 0
    ids: tuple[str, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)


class BadRow(Model):
    """A row that cannot be used (see :class:`fulltune.errors.Problem`)."""

    found: str
    expected: str = ""
    fix: str = ""
    where: str = ""
    field: str = ""


class Audit(Model):
    """All findings before training.

    ``leaked_ids`` are the evaluation rows whose input and target also occur in train; ``bad_rows`` are all rows that
    cannot be read.
    """

    findings: tuple[Finding, ...]
    leaked_ids: tuple[str, ...] = ()
    bad_rows: tuple[BadRow, ...] = ()

    @property
    def is_broken(self) -> bool:
        """True if a finding makes training pointless."""
        return any(finding.level == "error" for finding in self.findings)

    def extended(self, findings: Iterable[Finding]) -> Audit:
        """Return the audit with further findings."""
        return self.model_copy(update={"findings": (*self.findings, *findings)})

    def summary(self) -> AuditSummary:
        """Return counts and messages for the record, most severe first, then those that distort the scores most."""
        order = ("error", "warning", "info")
        ranked = sorted(self.findings, key=lambda finding: (order.index(finding.level), _rank(finding)))
        levels = [finding.level for finding in self.findings]
        return AuditSummary(
            errors=levels.count("error"),
            warnings=levels.count("warning"),
            findings=tuple(finding.message for finding in ranked),
            leaked_rows=len(self.leaked_ids),
        )

    def warnings(self, without: Container[str] = ()) -> tuple[str, ...]:
        """Return the message of each warning on one line, except for the kinds in ``without``.

        Those that distort the scores most are first.
        """
        warnings = [one for one in self.findings if one.level == "warning" and one.kind not in without]
        warnings.sort(key=_rank)
        return tuple(" ".join(one.message.split()) for one in warnings)

    @property
    def reduced(self) -> tuple[str, ...]:
        """Sentences about values of the config that exceed the model's limits; the limits are used instead."""
        return tuple(one.message for one in self.findings if one.kind == REDUCED_KIND)

    def raise_if_broken(self, where: str = "") -> None:
        """Raise if there are problems that make training pointless.

        Args:
            where: Path of the written audit, for the message; empty if none was written.

        Raises:
            DataError: All errors at once, followed by each bad row.
        """
        problems = [_problem(finding, where) for finding in self.findings if finding.level == "error"]
        if problems:
            raise DataError(problems + [Problem(**row.model_dump()) for row in self.bad_rows])


def _rank(finding: Finding) -> int:
    """Return the place of a finding in the order of :data:`_DISTORTING`; all others share the last one."""
    return _DISTORTING.index(finding.kind) if finding.kind in _DISTORTING else len(_DISTORTING)


def _problem(finding: Finding, where: str) -> Problem:
    shown = ", ".join(finding.ids[:3]) + (" …" if finding.count > 3 else "")
    message = finding.message.rstrip(".") + (f" ({shown})" if finding.ids else "")
    fixes = [finding.fix, f"the complete list is in {where}" if where else ""]
    return Problem(message, fix="; ".join(filter(None, fixes)), where=finding.split)


def unscored_rows(findings: Iterable[Finding]) -> int:
    """Return the number of evaluation rows that cannot be scored."""
    kinds = (UNSCORED_KIND, LONE_TOKEN_KIND)
    return sum(found.count for found in findings if found.kind in kinds and found.split == "eval")


def bad_rows(problems: Sequence[Problem]) -> tuple[BadRow, ...]:
    """Return problems of reading as the rows that an audit lists."""
    return tuple(BadRow(**asdict(problem)) for problem in problems)


def first_warnings(sentences: Sequence[str], rest: str, shown: int = 5) -> list[str]:
    """Return the first warnings of an audit for a terminal, and a line that says where the others are."""
    more = len(sentences) - shown
    return [f"Audit: {line}" for line in sentences[:shown]] + ([f"Audit: … and {more} more {rest}"] if more > 0 else [])


def some(ids: Sequence[str]) -> tuple[str, ...]:
    """Return the first ids, as many as an audit lists."""
    return tuple(ids[:LISTED])


def rows(count: int, verb: str = "", of: str = "") -> str:
    """Return e.g. ``"1 row of train is"`` or ``"3 rows are"``; the verb is ``be``, ``have`` or none."""
    noun = ("row" if count == 1 else "rows") + (f" of {of}" if of else "")
    form = {"be": ("is", "are"), "have": ("has", "have"), "": ("", "")}[verb][count != 1]
    return f"{count} {noun} {form}".rstrip()


def percent(part: float, total: float) -> str:
    """Return ``part / total`` as a percentage of two digits; 100% only for all, and 0% only for none."""
    fraction = part / total if total else 0.0
    if fraction >= 0.1:
        return f"{fraction if part >= total else min(fraction, 0.99):.0%}"
    return f"{100 * fraction:.2g}%"


def quoted(labels: Iterable[str], spell: Callable[[str], str] = repr) -> str:
    """Return the first five labels in quotes, long ones shortened, and the count of the others."""
    return abridged([shorten(spell(label)) for label in labels])


def shorten(text: str, size: int = 60) -> str:
    """Return the text on one line, shortened to ``size`` characters with an ellipsis if it is longer."""
    text = on_one_line(text)
    return text if len(text) <= size else f"{clip(text, size - 1)}…"


def apart(texts: Sequence[str], size: int = 60) -> list[str]:
    """Return the texts shortened so that they still differ: a long beginning that all share becomes an ellipsis."""
    columns = zip(*texts, strict=False) if len(texts) > 1 else ()
    shared = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, columns))
    skipped = max(0, shared - size // 2) if max(map(len, texts), default=0) > size else 0
    return [shorten(f"…{text[skipped:]}" if skipped else text, size) for text in texts]
