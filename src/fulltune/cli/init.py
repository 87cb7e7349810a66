"""``fulltune init``: write a commented config for the user's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fulltune
from fulltune.cli.options import Common, with_common_options


@with_common_options
def init(
    common: Common,
    data: Annotated[list[str], typer.Argument(metavar="DATA…", help="Files, a folder, or a pattern.")],
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="The task; inferred from the columns by default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The base model; default: one that is installed.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="COLUMN", help="The column with the texts; inferred by default.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="The column with the labels; inferred by default.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the config is written.")] = Path(
        "config.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace that file if it exists.")] = False,
) -> None:
    """Read data, infer task and columns, and write a config that runs as it is."""
    from fulltune.cli.render import proposal

    with common.answering():
        proposed = fulltune.init(data, task=task, model=model, text=text, label=label, output=output, force=force)
    common.answer(proposed.to_json(), proposal.proposal(proposed))
