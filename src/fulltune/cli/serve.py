"""``fulltune serve``: answer requests over HTTP."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import fulltune
from fulltune.cli.options import Common, Overrides, TaskConfig, with_common_options

if TYPE_CHECKING:
    from fulltune.serve.server import Ready


@with_common_options
def serve(
    common: Common,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, `latest`, a version (NAME@3, NAME@production), any model.")
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Any but this machine's own needs --token-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 for any free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="Holds the bearer token that requests must carry."),
    ] = None,
    database: Annotated[
        str, typer.Option("--db", metavar="NAME", help="text2sql: the database of questions that name none.")
    ] = "",
    execute: Annotated[
        bool, typer.Option("--execute", help="text2sql: run the queries, read-only, and answer with their rows.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="Inputs per batch; default: as in the run.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Time per request, waiting included.")
    ] = 60.0,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", help="Inputs that may wait; further ones get status 429.")
    ] = 1024,
    max_inputs: Annotated[int, typer.Option("--max-inputs", metavar="N", help="Inputs per request.")] = 256,
    max_characters: Annotated[
        int, typer.Option("--max-characters", metavar="N", help="Characters per input.")
    ] = 100_000,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", help="New tokens per generated answer.")
    ] = 1024,
    max_rows: Annotated[int, typer.Option("--max-rows", metavar="N", help="Result rows per query of --execute.")] = 100,
    max_body: Annotated[int, typer.Option("--max-body", metavar="MIB", help="Size of a request in MiB.")] = 8,
    config: TaskConfig = None,
    overrides: Overrides = None,
) -> None:
    """Answer requests over HTTP until SIGTERM or Ctrl-C: /predict, /health, /metrics, and /docs.

    Concurrent requests share batches; each gets the answers of `predict`. NAME@production follows promotions and
    roll-backs without a lost request.
    """
    stdout = sys.stdout
    with common.answering() as progress:
        from fulltune.serve.limits import Limits

        limits = Limits(max_body, max_inputs, max_characters, max_tokens, max_rows, queue, timeout)

        def ready(state: Ready) -> None:
            progress.note(f"{state.model} ({state.task}) answers at {state.url} (how: {state.url}/docs). Ctrl-C ends.")
            if state.warning:
                progress.note(state.warning)
            if common.as_json:
                with redirect_stdout(stdout):
                    common.answer(json.dumps(asdict(state)), "")

        options = {} if batch_size is None else {"evaluation": {"batch_size": batch_size}}
        fulltune.serve(
            model,
            host=host,
            port=port,
            token_file=token_file,
            config=config,
            out=common.out,
            overrides=overrides or (),
            database=database,
            execute=execute,
            limits=limits,
            ready=ready,
            **options,
        )
