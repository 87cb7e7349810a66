"""Summarize the findings of an audit: the part of the data that the model gets to see."""

from __future__ import annotations

from collections.abc import Mapping

from fulltune.data.findings import REDUCED_KIND, Audit, Finding
from fulltune.records.data import ClassRows, DataSummary, LabelSpellings, Leaks, Lengths, Truncation
from fulltune.runtime.alphabetical import alphabetical


def data_summary(
    audit: Audit,
    rows: Mapping[str, int],
    *,
    max_length: int | None = None,
    padding: Mapping[str, float] | None = None,
    count_leaks: bool = False,
) -> DataSummary:
    """Return the summary of the audited data.

    Args:
        audit: The audit.
        rows: Rows by split.
        max_length: ``data.max_length``.
        padding: Fractions of padding in the inputs of training.
        count_leaks: Evaluation rows that also occur in train count in the deciding scores.
    """
    findings = {(finding.kind, finding.split): finding for finding in audit.findings}
    truncation = {split: _truncation(findings, split, rows[split]) for split in rows}
    balance = findings.get(("class_balance", ""))
    return DataSummary(
        rows=dict(rows),
        max_length=max_length,
        positions=_positions(audit),
        truncation={split: one for split, one in truncation.items() if one.rows},
        lengths={split: _lengths(findings["lengths", split]) for split in rows if ("lengths", split) in findings},
        classes=_classes(balance) if balance else (),
        labels=_spellings(findings, balance) if balance else None,
        padding=dict(padding or {}),
        leaks=_leaks(audit, rows.get("eval", 0), count_leaks),
    )


def _positions(audit: Audit) -> int | None:
    """Return the window of the model if it is used instead of ``data.max_length``."""
    reduced = {one.details["key"]: one.details["used"] for one in audit.findings if one.kind == REDUCED_KIND}
    return reduced.get("data.max_length")


_Findings = Mapping[tuple[str, str], Finding]


def _truncation(findings: _Findings, split: str, of: int) -> Truncation:
    truncated, lost = findings.get(("truncated", split)), findings.get(("nothing_to_learn", split))
    unlearnable = lost.count if lost else 0
    tokens = truncated.details["tokens"] if truncated else {}
    return Truncation(
        rows=(truncated.count if truncated else 0) + unlearnable, unlearnable=unlearnable, of=of, tokens=tokens
    )


def _lengths(finding: Finding) -> Lengths:
    return Lengths(**{name: finding.details[name] for name in Lengths.model_fields})


def _classes(balance: Finding) -> tuple[ClassRows, ...]:
    counts: Mapping[str, Mapping[str, int]] = balance.details["counts"]
    labels = dict.fromkeys(label for split in ("train", "eval", "valid") for label in counts[split])
    rows = [ClassRows(label=label, **{split: counts[split].get(label, 0) for split in counts}) for label in labels]
    return tuple(sorted(rows, key=lambda row: (-row.train, -row.eval, alphabetical(row.label))))


def _spellings(findings: _Findings, balance: Finding) -> LabelSpellings:
    """Return the spellings; without a finding about them, every label has one."""
    similar, padded = findings.get(("similar_labels", "")), findings.get(("padded_labels", ""))
    merged = findings.get(("merged_labels", ""))
    written = len(set().union(*balance.details["counts"].values()))
    return LabelSpellings(
        written=written,
        distinct=similar.details["distinct"] if similar else written,
        spellings=tuple(similar.details["spellings"]) if similar else (),
        padded=tuple(padded.details["labels"]) if padded else (),
        merged=merged.details["merged"] if merged else {},
    )


def _leaks(audit: Audit, of: int, counted: bool) -> Leaks | None:
    finding = next((finding for finding in audit.findings if finding.kind == "leaks"), None)
    if finding is None:
        return None
    ids = finding.ids if counted else audit.leaked_ids
    return Leaks(rows=finding.count, of=of, kinds=finding.details["kinds"], ids=ids, counted=counted)
