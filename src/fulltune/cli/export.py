"""``fulltune export``: write a model for other engines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import fulltune
from fulltune.cli.options import Common, Overrides, with_common_options
from fulltune.errors import ExportRefused
from fulltune.runtime.terminal import write_line


@with_common_options
def export(
    common: Common,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, `latest`, a version (NAME@3, NAME@production), a folder.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; empty or new.")],
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="onnx, onnx-int8, gguf (f16), gguf-q8_0 or safetensors-bf16."),
    ],
    margin: Annotated[
        float | None,
        typer.Option("--margin", metavar="X", help="Smallest loss that is refused; 0.01 is a point, or 1%."),
    ] = None,
    force: Annotated[
        str, typer.Option("--force", metavar="REASON", help="Write it even if it loses more; REASON is recorded.")
    ] = "",
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Rows to compare on; default: the run's evaluation rows."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Task and columns; a run has its own.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write a model in another format, and compare its answers with the original on the evaluation rows.

    Exits with 3 if it is worse by the margin; then nothing is written. `predict`, `serve` and `evaluate` take DIR.
    """
    from fulltune.cli.render import exports
    from fulltune.records.export import Export

    refused = None
    with common.answering() as progress:
        try:
            found = fulltune.export(
                model,
                folder,
                format=form,
                margin=margin,
                force=force,
                data=data or (),
                config=config,
                out=common.out,
                overrides=overrides or (),
                progress=progress,
            )
        except ExportRefused as error:
            refused = error
            found = Export.model_validate_json(error.export)
    common.answer(found.to_json(), exports.exported(found))
    if refused is not None:
        write_line(sys.stderr, f"error: {refused.message()}")
        raise typer.Exit(refused.exit_code)
