"""The command line: verbs, options and exit codes. What a verb does lies elsewhere, and is imported only when it runs.

Exit codes: 0 done; 1 an error that a user can mend; 2 usage; 3 training was stopped or the tuned model was rejected;
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

import fulltune
from fulltune.errors import ConfigError, FulltuneError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fulltune.progress import Progress

app = typer.Typer(
    name="fulltune",
    help="Full FP32 fine-tuning that is measured against zero-shot and few-shot before it is believed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

models = typer.Typer(help="What can be done with tuned models.", no_args_is_help=True)
app.add_typer(models, name="models")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML or JSON file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override one key of the config; repeatable.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs live.")]
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


def entry() -> None:
    """The console script."""
    sys.excepthook = _unexpected
    typer.main.get_command(app)(prog_name="fulltune")


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train, measure against the baselines, and write the record and the report."""
    with _answering(as_json, verbose, quiet) as progress:
        record = fulltune.run(config, out=out, overrides=overrides or (), progress=progress)
    _finish_run(record, out, as_json)


@app.command()
def plan(
    config: ConfigFile,
    learning_curve: Annotated[
        bool, typer.Option("--learning-curve", help="Train on growing parts of the rows; say what more would bring.")
    ] = False,
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say what a config would do, and every problem it has, without training."""
    if learning_curve:
        _learning_curve(config, overrides, out, quiet, as_json, verbose)
        return
    with _answering(as_json, verbose, quiet):
        from fulltune import pipeline, render

        found = pipeline.plan(config, out=out, overrides=overrides or ())
    _answer(found.to_json(), render.plan(found), as_json)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run id, a local folder, or any model that a config takes.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Task and data; a run id brings its own.")
    ] = None,
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score a model on the evaluation rows, without training."""
    from fulltune import render

    with _answering(as_json, verbose, quiet) as progress:
        found = fulltune.evaluate(model, config, out=out, overrides=overrides or (), progress=progress)
    _answer(found.to_json(), render.evaluation(found), as_json)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run: its id, the beginning of it, a path, or `latest`.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The run to compare it with.")],
    out: Out = RUNS,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare two runs row by row; refuses runs whose scores do not mean the same."""
    from fulltune import render
    from fulltune.compare import compare
    from fulltune.store.runs import resolve

    with _answering(as_json, verbose):
        # Not `fulltune.compare`, which is the same but waits for torch.
        found = compare(resolve(a, out), resolve(b, out))
    _answer(found.to_json(), render.comparison(found), as_json)


@app.command("lr-find")
def lr_find(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Look for a learning rate: a range test, then short trainings compared on held-out rows."""
    with _answering(as_json, verbose, quiet) as progress:
        from fulltune import render

        found = fulltune.find_learning_rate(config, out=out, overrides=overrides or (), progress=progress)
    _answer(found.to_json(), render.learning_rate(found), as_json)


@app.command()
def demo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which one: contracts or tales.")],
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a complete example on generated data; needs no file and no network."""
    from fulltune.demo import prepare

    with _answering(as_json, verbose, quiet) as progress:
        config = prepare(name, out)
        record = fulltune.run(config, out=out, overrides=overrides or (), progress=progress)
    _finish_run(record, out, as_json, f"Rows and config: {config}; put your own there and `fulltune run {config}`")


@app.command()
def doctor(out: Out = RUNS, as_json: Json = False, verbose: Verbose = False) -> None:
    """Show versions, the machine, fast paths, and what is missing for which feature."""
    from fulltune import render
    from fulltune.doctor import diagnose

    with _answering(as_json, verbose):
        found = diagnose(out)
    _answer(found.to_json(), render.diagnosis(found), as_json)


def _learning_curve(
    config: Path, overrides: list[str] | None, out: Path, quiet: bool, as_json: bool, verbose: bool
) -> None:
    with _answering(as_json, verbose, quiet) as progress:
        from fulltune import more_data, render

        found = more_data.learning_curve(config, out=out, overrides=overrides or (), progress=progress)
    _answer(found.to_json(), render.learning_curve(found), as_json)


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

    with _answering(as_json, verbose, quiet) as progress:
        chosen = {} if alphas is None else {"alphas": _numbers(alphas)}
        found = fulltune.interpolate(run, out=out, to=to, progress=progress, **chosen)
    _answer(found.to_json(), render.interpolation(found), as_json)


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

    with _answering(as_json, verbose, quiet) as progress:
        found = fulltune.soup(sources, out=out, to=to, progress=progress)
    _answer(found.to_json(), render.soup(found), as_json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r}", expected="numbers with commas, like 0,0.5,1", where="--alphas") from None


def _version(wanted: bool) -> None:
    if wanted:
        print(fulltune.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


def _finish_run(record: fulltune.Record, out: Path, as_json: bool, hint: str = "") -> None:
    from fulltune import render

    _answer(record.to_json(), render.record(record, out / record.run_id, hint), as_json)
    if record.outcome != "accepted":
        raise typer.Exit(3)


def _answer(text: str, human: RenderableType, as_json: bool) -> None:
    if as_json:
        print(text.rstrip())
    else:
        from rich.console import Console

        Console().print(human)


@contextmanager
def _answering(as_json: bool, verbose: bool, quiet: bool = False) -> Iterator[Progress]:
    """Keep stdout free for the answer, and turn an expected error into one message and its exit code."""
    from fulltune.progress import open_progress

    if quiet:
        os.environ.update(_SILENCE)
    try:
        with redirect_stdout(sys.stderr):
            yield open_progress(quiet)
    except FulltuneError as error:
        if verbose or os.environ.get("FULLTUNE_DEBUG"):
            traceback.print_exc()
        _refuse(error.message(), type(error).__name__, [problem.to_dict() for problem in error.problems], as_json)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        _refuse("interrupted", "KeyboardInterrupt", [], as_json)
        raise typer.Exit(130) from None


def _refuse(message: str, kind: str, problems: list[dict[str, str]], as_json: bool) -> None:
    print(f"error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": message, "problems": problems}}, ensure_ascii=False))


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    print("error: this is a bug in fulltune; please report it with the lines above.", file=sys.stderr)
