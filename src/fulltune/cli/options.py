"""What every verb shares: the options that all have, where its answer goes, and which exit code an error gives."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fulltune.errors import FulltuneError
from fulltune.runtime import distributed
from fulltune.runtime.terminal import EscapedRenderable, discard_output, plain_console, portable_json, write_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fulltune.runtime.progress import Progress

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML or JSON file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override one key of the config; repeatable.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs and the registry live.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no log on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks of expected errors too.")]

RUNS = Path("runs")

#: What libraries read when they are imported, and then draw no bars and write no log.
_SILENCE = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def answer(text: str, human: RenderableType, as_json: bool) -> None:
    """The verb's result on stdout: the JSON text, or what people read; once, however many processes run."""
    if not distributed.shows_output() or sys.stdout is None:
        return
    try:
        if as_json:
            _print_json(text)
        else:
            plain_console().print(EscapedRenderable(human))
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)


def _print_json(text: str) -> None:
    print(portable_json(text.rstrip(), sys.stdout.encoding))


@contextmanager
def answering(as_json: bool, verbose: bool, quiet: bool = False) -> Iterator[Progress]:
    """Keep stdout free for the answer, and turn an expected error into one message and its exit code."""
    from fulltune.runtime.progress import open_progress

    if quiet:
        os.environ.update(_SILENCE)
    try:
        with redirect_stdout(sys.stderr):
            yield open_progress(quiet or not distributed.shows_output())
    except FulltuneError as error:
        if verbose or os.environ.get("FULLTUNE_DEBUG"):
            traceback.print_exc()
        if distributed.is_first_to_report():
            _refuse(error.message(), type(error).__name__, [problem.to_dict() for problem in error.problems], as_json)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as error:
        _refuse(str(error) or "interrupted", "KeyboardInterrupt", [], as_json)
        raise typer.Exit(130) from None


def _refuse(message: str, kind: str, problems: list[dict[str, str]], as_json: bool) -> None:
    write_line(sys.stderr, f"error: {message}")
    if as_json and sys.stdout is not None:
        _print_json(json.dumps({"error": {"type": kind, "message": message, "problems": problems}}, ensure_ascii=False))
