"""docs/architectures.md: the matrix as a table, what was refused and why, and the versions used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.processes import about

from architectures.cells import COLUMNS, Cell

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"

_INTRODUCTION = """\
# Architectures

Every `model_type` of transformers with a head for causal or sequence-to-sequence language modeling, masked language
modeling or sequence classification, as a checkpoint of two layers with random weights (local windows of 16 tokens,
prompts longer than that). Each cell compares fulltune with plain transformers that computes one row at a time, without
padding, cache or kernels. Compared are likelihoods, greedy answers, the loss and the gradient norm of the first step
(in one micro-batch with every fast path, and in two without any), the evaluation loss, and the predictions of the saved
folder. They must agree to 1e-4 (gradient norms to 1e-3).

`make architectures` measures the matrix and writes this page. {about}

| column | measured |
|---|---|
| lm | likelihoods and greedy continuations of prompts with a long common prefix, without training |
| pc | `causal-lm` on prompts and completions |
| s2s | `seq2seq` |
| sql | `text2sql` |
| cls | `classification`, one label per row |
| multi | `classification`, several labels per row |

✓ agrees · ✗ differs · ! an error of the library · **R** refused by fulltune, with the reason [below](#refused)
· – not applicable: an encoder does not generate text, and `causal-lm` is for decoders
· an empty cell has not been measured
"""

_SIGNS = {"ok": "✓", "wrong": "✗", "crash": "!", "refused": "**R**", "-": "–"}


def write(cells: Iterable[Cell], path: Path = PAGE) -> None:
    """Write the page for these results."""
    path.write_text(text(list(cells)), encoding="utf-8")


def text(cells: list[Cell]) -> str:
    """Return the page for these results, as Markdown."""
    facts = about()
    machine = f"Measured with transformers {facts['transformers']} and torch {facts['torch']} on {facts['machine']}."
    rows = _by_type(cell for cell in cells if cell.status != "not built")
    parts = [
        _INTRODUCTION.format(about=machine),
        "\n".join(_table(rows)),
        *_list("Refused", "The error message of fulltune.", _grouped(cells, "refused")),
        *_list("Wrong", "Known differences.", _grouped(cells, "wrong")),
        *_list("Crashes", "Errors that fulltune does not raise itself.", _grouped(cells, "crash")),
        *_list("Not built", "Model types without a text-only checkpoint here.", _grouped(cells, "not built")),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _by_type(cells: Iterable[Cell]) -> dict[str, dict[str, Cell]]:
    rows: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.model_type, {})[cell.task] = cell
    return dict(sorted(rows.items()))


def _table(rows: dict[str, dict[str, Cell]]) -> Iterator[str]:
    yield f"| model type | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for model_type, row in rows.items():
        signs = [_SIGNS[row[column].status] if column in row else "" for column in COLUMNS]
        yield f"| {model_type} | {' | '.join(signs)} |"


def _grouped(cells: list[Cell], status: str) -> dict[str, list[str]]:
    """Group cells by their message."""
    groups: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell.status == status:
            groups.setdefault(_shared(cell.detail), {}).setdefault(cell.model_type, []).append(cell.task)
    return {
        detail: [f"{name} ({', '.join(tasks)})" if status != "not built" else name for name, tasks in found.items()]
        for detail, found in groups.items()
    }


def _shared(detail: str) -> str:
    """Return the part of the message that all types share, fit for Markdown."""
    return re.sub(r"head for \S+;", "head for this type;", detail).replace("|", "\\|")


def _list(title: str, introduction: str, groups: dict[str, list[str]]) -> list[str]:
    if not groups:
        return []
    lines = [f"- {', '.join(names)}: {detail}" for detail, names in groups.items()]
    return [f"## {title}\n\n{introduction}\n\n" + "\n".join(lines)]
