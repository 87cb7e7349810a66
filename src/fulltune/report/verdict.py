"""Write verdicts as Markdown, JUnit XML and one HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from xml.etree import ElementTree

from fulltune.records.verdict import ManyVerdicts, Measured, PairVerdict
from fulltune.report.display import decimals, difference, interval, number, p_value

#: Signs before a title that claims a difference; the words of the others say it all.
_SIGNS = {"improved": "▲ ", "worse": "▼ "}

#: Characters that XML cannot contain, not even escaped; a name of a file may.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_HEADER = ("system", "score", "difference", "interval", "p", "verdict")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #8886; text-align: right; }
td:first-child, th:first-child { text-align: left; } .improved { color: #0a7d70; } .worse { color: #b3470b; }
@media (prefers-color-scheme: dark) { body { background: #14181c; color: #e8eaec; } }
"""


def pairs(found: PairVerdict | ManyVerdicts) -> tuple[PairVerdict, ...]:
    """Return the verdicts as a sequence."""
    return found.comparisons if isinstance(found, ManyVerdicts) else (found,)


def rows(found: PairVerdict | ManyVerdicts) -> list[tuple[str, ...]]:
    """Return the cells of a table, the reference first; the columns are those of :func:`header`."""
    every = pairs(found)
    digits = decimals([every[0].a.value, *(one.b.value for one in every)])
    lines: list[tuple[str, ...]] = [(every[0].a.name, _score(every[0].a, digits), "", "", "", "reference")]
    for one in every:
        bounds = interval(*one.difference.interval, digits, sign=True)
        p = p_value(one.p_holm).removeprefix("p = ").removeprefix("p ")
        delta = difference(one.difference.value, digits)
        lines.append((one.b.name, _score(one.b, digits), delta, bounds, p, said(one)))
    return lines


def header(found: PairVerdict | ManyVerdicts) -> tuple[str, ...]:
    """Return the names of the columns; the p-value of several comparisons is adjusted."""
    names = list(_HEADER)
    names[1] = pairs(found)[0].label
    if isinstance(found, ManyVerdicts):
        names[4] = "p (Holm)"
    return tuple(names)


def said(one: PairVerdict) -> str:
    """Return the verdict of a row, and whether it meets the requirement."""
    low, high = one.difference.interval
    small = abs(one.difference.value) < one.min_effect and (low > 0 or high < 0)
    text: str = "below min_effect" if small and one.verdict == "no detectable change" else one.verdict
    if one.not_worse is not None and one.not_worse.verdict == "not worse" and one.verdict != "improved":
        text += ", not worse"
    return text if one.passed else f"{text} (required: {one.require})"


def sentences(found: PairVerdict | ManyVerdicts) -> list[str]:
    """Return headlines and notes."""
    lines = [line for one in pairs(found) for line in (one.headline, *one.notes)]
    return list(dict.fromkeys(lines))


def markdown(found: PairVerdict | ManyVerdicts) -> str:
    """Return a section for a pull request or a job summary."""
    lines = [f"### {_mark(found)}{_title(found)}", "", *(f"{_cell(line)}  " for line in sentences(found)), ""]
    lines += [_line(header(found)), f"|{'---|' * len(_HEADER)}", *(_line(row) for row in rows(found))]
    return "\n".join(lines) + "\n"


def junit(found: PairVerdict | ManyVerdicts) -> str:
    """Return a JUnit report with one test per comparison; it fails if the requirement does not hold."""
    every = pairs(found)
    failures = sum(not one.passed for one in every)
    suite = ElementTree.Element(
        "testsuite", name="fulltune verdict", tests=str(len(every)), failures=str(failures), errors="0"
    )
    for one in every:
        claim = {"improved": "is better than", "not-worse": "is not worse than"}.get(one.require, "against")
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"fulltune.{one.metric}", name=f"{one.b.name} {claim} {one.a.name}"
        )
        text = "\n".join((one.headline, *one.notes))
        if not one.passed:
            ElementTree.SubElement(case, "failure", message=one.headline, type=one.require).text = text
        ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(suite)
    text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", ElementTree.tostring(suite, encoding="unicode"))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def html(found: PairVerdict | ManyVerdicts) -> str:
    """Return one self-contained page."""
    body = "".join(f"<p>{escape(line)}</p>" for line in sentences(found))
    head = "".join(f"<th>{escape(name)}</th>" for name in header(found))
    classes = ["", *(one.verdict.split()[0] for one in pairs(found))]
    lines = "".join(
        f'<tr class="{kind}">{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for kind, row in zip(classes, rows(found), strict=True)
    )
    title = escape(f"{_mark(found)}{_title(found)}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body><h1>{title}</h1>{body}<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
        "</body></html>\n"
    )


def _title(found: PairVerdict | ManyVerdicts) -> str:
    every = pairs(found)
    if isinstance(found, PairVerdict):
        return f"{found.b.name} against {found.a.name}: {found.verdict}"
    return f"{len(every)} systems against {found.reference} in {every[0].label}"


def _mark(found: PairVerdict | ManyVerdicts) -> str:
    if pairs(found)[0].require:
        return "✓ " if found.passed else "✕ "
    return _SIGNS.get(found.verdict, "") if isinstance(found, PairVerdict) else ""


def _score(score: Measured, digits: int) -> str:
    return f"{number(score.value, digits)} {interval(*score.interval, digits)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
