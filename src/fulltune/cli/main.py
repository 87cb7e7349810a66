"""The command line: verbs, options and exit codes. What a verb does lies elsewhere, and is imported only when it runs.

Exit codes: 0 done; 1 an error that a user can mend; 2 usage; 3 training was stopped or the tuned model was rejected;
130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

import fulltune
from fulltune.cli import launch
from fulltune.cli.models import models
from fulltune.cli.options import RUNS, ConfigFile, Json, Out, Overrides, Quiet, Verbose, answer, answering
from fulltune.runtime.terminal import escape_controls, replace_unknown_characters, write_line
from fulltune.runtime.version import __version__

app = typer.Typer(
    name="fulltune",
    help="Full FP32 fine-tuning that is measured against zero-shot and few-shot before it is believed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(models, name="models")
app.command("launch", context_settings=launch.CONTEXT)(launch.launch)


def entry() -> None:
    """The console script."""
    sys.excepthook = _unexpected
    warnings.formatwarning = _visible_warning
    replace_unknown_characters()
    typer.main.get_command(app)(prog_name="fulltune")


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A YAML or JSON file.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped or killed.")
    ] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume although data, config or packages have changed.")
    ] = False,
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train, measure against the baselines, and write the record and the report."""
    if config is None and resume is None:
        raise typer.BadParameter("name a config, or a run with --resume", param_hint="CONFIG")
    with answering(as_json, verbose, quiet) as progress:
        record = fulltune.run(
            config, out=out, overrides=overrides or (), progress=progress, resume=resume, allow_changed=allow_changed
        )
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
    with answering(as_json, verbose, quiet):
        from fulltune.cli.render import runs
        from fulltune.pipeline import run as pipeline

        found = pipeline.plan(config, out=out, overrides=overrides or ())
    answer(found.to_json(), runs.plan(found), as_json)


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
    from fulltune.cli.render import runs

    with answering(as_json, verbose, quiet) as progress:
        found = fulltune.evaluate(model, config, out=out, overrides=overrides or (), progress=progress)
    answer(found.to_json(), runs.evaluation(found), as_json)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run: its id, the beginning of it, a path, or `latest`.")],
    b: Annotated[str | None, typer.Argument(metavar="[B]", help="The run to compare it with.")] = None,
    question: Annotated[
        str | None, typer.Option("--ask", metavar="TEXT", help="Ask both this; a run alone: its base and its result.")
    ] = None,
    database: Annotated[
        str, typer.Option("--db", metavar="NAME", help="text2sql: which database --ask is about.")
    ] = "",
    data: Annotated[bool, typer.Option("--data", help="Show rows fixed and broken from A to B.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="For --ask, where neither is a run.")
    ] = None,
    overrides: Overrides = None,
    out: Out = RUNS,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare two runs, row by row, by one question (--ask) or by what changed (--data).

    `base` and `tuned` name the two ends of the newest run.
    """
    from fulltune.cli.render import answers

    if question is not None:
        with answering(as_json, verbose):
            from fulltune.pipeline.ask import ask

            asked = ask(question, a, b, place=database, config=config, out=out, overrides=overrides or ())
        answer(asked.to_json(), answers.asked(asked), as_json)
    elif data:
        _changed_rows(a, b, out, as_json, verbose)
    elif b is None:
        raise typer.BadParameter("name two runs, or add --ask or --data", param_hint="B")
    else:
        _compare_runs(a, b, out, as_json, verbose)


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
    with answering(as_json, verbose, quiet) as progress:
        from fulltune.cli.render import runs

        found = fulltune.find_learning_rate(config, out=out, overrides=overrides or (), progress=progress)
    answer(found.to_json(), runs.learning_rate(found), as_json)


@app.command()
def methods(
    config: ConfigFile,
    names: Annotated[
        str, typer.Option("--methods", metavar="A,B,…", help="Which; full is what others are compared with.")
    ] = "full,lora,qlora,prompt-tuning",
    rates: Annotated[int, typer.Option("--rates", metavar="N", help="Learning rates to try for each.")] = 3,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Runs of each with its best rate.")] = 1,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", metavar="N", help="Optimizer steps of every training.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="Or: training tokens that each sees, about.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="End trials early that fall behind.")] = False,
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Which method for these rows? Full, LoRA, QLoRA, prompt tuning, measured; goes on where it was."""
    with answering(as_json, verbose, quiet) as progress:
        from fulltune.cli.render import runs

        found = fulltune.compare_methods(
            config,
            methods=[name.strip() for name in names.split(",")],
            rates=rates,
            seeds=seeds,
            max_steps=max_steps,
            tokens=tokens,
            prune=prune,
            out=out,
            overrides=overrides or (),
            progress=progress,
            quiet=quiet,
        )
    answer(found.to_json(), runs.methods(found), as_json)


@app.command()
def sweep(
    config: ConfigFile,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="A.B=…", help="LOW..HIGH, LOW..HIGH:log or A,B,C for one key; repeatable."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", metavar="N", help="Trainings, earlier calls counted.")] = 20,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the search.")] = 17,
    prune: Annotated[bool, typer.Option("--prune", help="End trials early that fall behind.")] = False,
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Search over any keys of a config, judged on validation rows; goes on where it was."""
    with answering(as_json, verbose, quiet) as progress:
        from fulltune.cli.render import runs

        found = fulltune.sweep(
            config,
            over=over or (),
            trials=trials,
            seed=seed,
            prune=prune,
            out=out,
            overrides=overrides or (),
            progress=progress,
        )
    answer(found.to_json(), runs.sweep(found), as_json)


@app.command()
def demo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which one: contracts, tales or text2sql.")],
    overrides: Overrides = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a complete example on generated data; needs no file and no network."""
    from fulltune.cli.demo import prepare

    with answering(as_json, verbose, quiet) as progress:
        config = prepare(name, out)
        record = fulltune.run(config, out=out, overrides=overrides or (), progress=progress)
    _finish_run(record, out, as_json, f"Rows and config: {config}; put your own there and `fulltune run {config}`")


@app.command()
def doctor(
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="CONFIG", help="Prove that a run of this config resumes exactly.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="With --resume: steps that are trained.")] = 8,
    overrides: Overrides = None,
    out: Out = RUNS,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show versions, the machine, fast paths, and what is missing for which feature."""
    if resume is not None:
        _check_resume(resume, steps, overrides, as_json, verbose)
        return
    from fulltune.cli.doctor import diagnose
    from fulltune.cli.render import runs

    with answering(as_json, verbose):
        found = diagnose(out)
    answer(found.to_json(), runs.diagnosis(found), as_json)


def _check_resume(config: Path, steps: int, overrides: list[str] | None, as_json: bool, verbose: bool) -> None:
    with answering(as_json, verbose) as progress:
        from fulltune.cli.render import runs
        from fulltune.pipeline.resume_check import check_resume

        found = check_resume(config, steps=steps, overrides=overrides or (), progress=progress)
    answer(found.to_json(), runs.resume_check(found), as_json)
    if not found.is_exact:
        raise typer.Exit(1)


def _compare_runs(a: str, b: str, out: Path, as_json: bool, verbose: bool) -> None:
    from fulltune.cli.render import runs
    from fulltune.metrics.compare import compare

    if {a, b} & {"base", "tuned"}:
        run = next((name for name in (a, b) if name not in ("base", "tuned")), "latest")
        hint = f"the record of a run has this comparison; its rows: `fulltune compare {run} --data`"
        raise typer.BadParameter(hint, param_hint="A B")
    from fulltune.store.registry.registry import evidence

    with answering(as_json, verbose):
        # Not `fulltune.compare`, which is the same but waits for torch.
        found = compare(evidence(a, out), evidence(b, out))
    answer(found.to_json(), runs.comparison(found), as_json)


def _ends(a: str, b: str | None) -> tuple[str, str | None]:
    """Return the run whose base is compared with its tuned model, or two runs: ``base`` and ``tuned`` are those of the
    run named alongside, or of the newest.
    """
    if a == "tuned" or b == "base":
        run = next((name for name in (a, b) if name not in ("base", "tuned", None)), "latest")
        raise typer.BadParameter(
            f"rows are shown from the base to the tuned model: write `fulltune compare {run} --data`", param_hint="A B"
        )
    if b == "tuned":
        return ("latest" if a == "base" else a), None
    return (b or "latest", None) if a == "base" else (a, b)


def _changed_rows(a: str, b: str | None, out: Path, as_json: bool, verbose: bool) -> None:
    from fulltune.cli.render import answers
    from fulltune.metrics.compare import changed_rows
    from fulltune.store.registry.registry import evidence

    before, after = _ends(a, b)
    with answering(as_json, verbose):
        found = changed_rows(evidence(before, out), evidence(after, out) if after else None)
    answer(found.to_json(), answers.changed_rows(found), as_json)


def _learning_curve(
    config: Path, overrides: list[str] | None, out: Path, quiet: bool, as_json: bool, verbose: bool
) -> None:
    with answering(as_json, verbose, quiet) as progress:
        from fulltune.cli.render import runs
        from fulltune.experiments import learning_curve as more_data

        found = more_data.learning_curve(config, out=out, overrides=overrides or (), progress=progress)
    answer(found.to_json(), runs.learning_curve(found), as_json)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


def _finish_run(record: fulltune.Record, out: Path, as_json: bool, hint: str = "") -> None:
    from fulltune.cli.render import registry, runs

    hints = [hint, registry.after_run(record.run_id, out)]
    answer(record.to_json(), runs.record(record, out / record.run_id, "\n".join(filter(None, hints))), as_json)
    if record.outcome != "accepted":
        raise typer.Exit(3)


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    write_line(sys.stderr, "".join(traceback.format_exception(kind, error, trace)).rstrip())
    write_line(sys.stderr, "error: this is a bug in fulltune; please report it with the lines above.")


def _visible_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {escape_controls(str(message))}\n"
