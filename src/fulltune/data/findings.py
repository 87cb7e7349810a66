"""What the audit says, as it is written to ``audit.json``."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal, Protocol

from pydantic import Field

from fulltune.errors import DataError, Problem
from fulltune.records.run import AuditSummary, Model

Level = Literal["error", "warning", "info"]

#: Ids that a finding lists; ``count`` tells how many there are.
LISTED = 20


#: The kind of findings on rows whose reference gives nothing to compare with.
UNSCORED_KIND = "reference_queries_fail"

#: The kind of findings on rows of which nothing is predicted.
LONE_TOKEN_KIND = "single_tokens"


class ExampleLike(Protocol):
    """A row as the task sees it (:class:`fulltune.tasks.base.Example`)."""

    @property
    def id(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def target(self) -> str | tuple[str, ...]: ...


class Finding(Model):
    """One thing that the audit found.

    Attributes:
        kind: What it is, in snake_case, the same in every audit.
        level: ``error`` stops the run, ``warning`` should be looked at, ``info`` is good to know.
        message: One sentence with the counts.
        fix: What to do, as an instruction.
        split: ``train``, ``valid`` or ``eval``; of a pair of splits the one whose ids are listed.
        count: How many rows.
        ids: The first of them.
        details: Numbers and pairs behind the sentence.
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
    """A row that could not be used (see :class:`fulltune.errors.Problem`)."""

    found: str
    expected: str = ""
    fix: str = ""
    where: str = ""
    field: str = ""


class Audit(Model):
    """All that was found, before anything is trained.

    ``leaked_ids`` are the evaluation rows whose input and target stand in train; ``bad_rows`` are all rows that could
    not be read.
    """

    findings: tuple[Finding, ...]
    leaked_ids: tuple[str, ...] = ()
    bad_rows: tuple[BadRow, ...] = ()

    def summary(self) -> AuditSummary:
        """Counts and sentences for the record, gravest first."""
        order = ("error", "warning", "info")
        ranked = sorted(self.findings, key=lambda finding: order.index(finding.level))
        levels = [finding.level for finding in self.findings]
        return AuditSummary(
            errors=levels.count("error"),
            warnings=levels.count("warning"),
            findings=tuple(finding.message for finding in ranked),
            leaked_rows=len(self.leaked_ids),
        )

    def warnings(self, without: Container[str] = ()) -> tuple[str, ...]:
        """Return the sentence of each warning, in one line; those of some kinds are left out."""
        found = (one for one in self.findings if one.level == "warning" and one.kind not in without)
        return tuple(" ".join(one.message.split()) for one in found)

    def raise_if_broken(self, allow_leaks: bool = False, where: str = "") -> None:
        """Stop here if anything is wrong that training would not mend.

        Args:
            allow_leaks: Go on although evaluation rows stand in train.
            where: The path of the written audit, for the message; empty where none was written.

        Raises:
            DataError: All errors at once, and then each bad row.
        """
        broken = [f for f in self.findings if f.level == "error" and not (allow_leaks and f.kind == "leaks")]
        problems = [_problem(finding, where) for finding in broken]
        if problems:
            raise DataError(problems + [Problem(**row.model_dump()) for row in self.bad_rows])


def _problem(finding: Finding, where: str) -> Problem:
    shown = ", ".join(finding.ids[:3]) + (" …" if finding.count > 3 else "")
    found = finding.message.rstrip(".") + (f" ({shown})" if finding.ids else "")
    fixes = [finding.fix, f"all of it is in {where}" if where else ""]
    return Problem(found, fix="; ".join(filter(None, fixes)), where=finding.split)


def bad_rows(problems: Sequence[Problem]) -> tuple[BadRow, ...]:
    return tuple(BadRow(**asdict(problem)) for problem in problems)


def first_warnings(sentences: Sequence[str], rest: str, shown: int = 5) -> list[str]:
    """Return the first lines of an audit's warnings for a terminal, and one that says where the rest is."""
    more = len(sentences) - shown
    return [f"Audit: {line}" for line in sentences[:shown]] + ([f"Audit: … and {more} more {rest}"] if more > 0 else [])


def some(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(ids[:LISTED])


def rows(count: int, verb: str = "", of: str = "") -> str:
    """``"1 row of train is"``, ``"3 rows are"``; the verb is ``be``, ``have`` or none."""
    noun = ("row" if count == 1 else "rows") + (f" of {of}" if of else "")
    form = {"be": ("is", "are"), "have": ("has", "have"), "": ("", "")}[verb][count != 1]
    return f"{count} {noun} {form}".rstrip()


def percent(part: float, whole: float) -> str:
    """``part / whole`` for people: two digits; 100% only of all, and 0% only of nothing."""
    share = part / whole if whole else 0.0
    if share >= 0.1:
        return f"{share if part >= whole else min(share, 0.99):.0%}"
    return f"{100 * share:.2g}%"


def listed(names: Sequence[str]) -> str:
    """Return the first five names and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def quoted(labels: Iterable[str], spell: Callable[[str], str] = repr) -> str:
    """Return the first five labels in quotes, long ones cut, and the number of the others."""
    return listed([cut(spell(label)) for label in labels])


def cut(text: str, size: int = 60) -> str:
    """Return the text, or its beginning and an ellipsis if it is longer than ``size`` characters."""
    return text if len(text) <= size else f"{text[: size - 1]}…"
