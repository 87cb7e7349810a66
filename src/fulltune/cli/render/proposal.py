"""Show what ``fulltune init`` inferred, and why."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fulltune.data.findings import rows, shorten
from fulltune.pipeline.proposal.propose import Proposal, SeenColumn, languages_in_words

#: Columns that are listed, and characters of an example.
_LISTED, _EXAMPLE = 12, 34


def proposal(proposed: Proposal) -> RenderableType:
    """Show rows, columns, the choices with their reasons, and the next commands."""
    others = "".join(f"; {rows(count, of=split)}" for split, count in proposed.rows.items() if split != "train")
    languages = languages_in_words(proposed.language, proposed.languages)
    language = f"; {languages}" if languages else ""
    lines: list[RenderableType] = [Text(f"{proposed.read}{others}{language}", overflow="fold")]
    lines += [_columns(proposed), Text("")]
    for key in ("task", "model"):
        lines.append(Text(f"{key:<6} {proposed.config[key]}: {proposed.why[key]}", overflow="fold"))
    lines += [Text(f"check  {warning}", style="yellow", overflow="fold") for warning in proposed.warnings]
    lines += [Text(f"note   {note}", style="dim", overflow="fold") for note in proposed.notes]
    lines.append(Text(f"\nWritten: {proposed.file}, with a reason on every line. Next:", overflow="fold"))
    return Group(*lines, *(Text(f"  {command}") for command in proposed.next))


def _columns(proposed: Proposal) -> Table:
    table = Table(box=None, pad_edge=False)
    for header in ("column", "holds", "distinct", "example", "read as"):
        table.add_column(header, overflow="fold", justify="right" if header == "distinct" else "left")
    ranked = sorted(proposed.columns, key=lambda one: not one.role)
    for column in ranked[:_LISTED]:
        table.add_row(shorten(column.name), column.kind, f"{column.distinct:,}", _example(column), column.role or "–")
    if len(ranked) > _LISTED:
        table.add_row(f"… {len(ranked) - _LISTED} more", "", "", "", "")
    return table


def _example(column: SeenColumn) -> str:
    text = " ".join(column.example.split())
    return text if len(text) <= _EXAMPLE else f"{text[: _EXAMPLE - 1]}…"
