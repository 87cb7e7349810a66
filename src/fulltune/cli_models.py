"""``fulltune models``: what can be done with tuned models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fulltune
from fulltune.console import RUNS, Json, Out, Quiet, Verbose, answer, answering
from fulltune.errors import ConfigError

models = typer.Typer(help="What can be done with tuned models.", no_args_is_help=True)


@models.command()
def interpolate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: its id, the beginning of it, a path, or `latest`.")],
    alphas: Annotated[
        str | None, typer.Option("--alphas", metavar="A,B,…", help="Points between 0 (base) and 1 (tuned).")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder of the chosen model.")] = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Go back from the tuned model towards the base: the best point inside the budget of forgetting."""
    from fulltune import render

    with answering(as_json, verbose, quiet) as progress:
        chosen = {} if alphas is None else {"alphas": _numbers(alphas)}
        found = fulltune.interpolate(run, out=out, to=to, progress=progress, **chosen)
    answer(found.to_json(), render.interpolation(found), as_json)


@models.command()
def soup(
    sources: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Runs, or folders with a checkpoint.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder of the mean.")] = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Average the weights of several runs or checkpoints of one architecture."""
    from fulltune import render

    with answering(as_json, verbose, quiet) as progress:
        found = fulltune.soup(sources, out=out, to=to, progress=progress)
    answer(found.to_json(), render.soup(found), as_json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r}", expected="numbers with commas, like 0,0.5,1", where="--alphas") from None
