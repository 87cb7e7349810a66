"""The command line: commands, options and exit codes. What a command does is imported only when it runs.

Exit codes: 0 done; 1 an error that a user can fix; 2 usage; 3 training was stopped, the tuned model was rejected, or a
required verdict does not hold; 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

import fulltune
from fulltune.cli import launch
from fulltune.cli.export import export
from fulltune.cli.init import init
from fulltune.cli.models import models
from fulltune.cli.options import (
    Common,
    ConfigFile,
    Overrides,
    refuse_unread,
    with_common_options,
    writing_stdout,
)
from fulltune.cli.predict import predict
from fulltune.cli.serve import serve
from fulltune.cli.verbs import Program
from fulltune.cli.verdict import verdict
from fulltune.runtime import distributed, paths
from fulltune.runtime.launch import report_exit_code
from fulltune.runtime.terminal import (
    escape_controls,
    is_unwritable,
    replace_unknown_characters,
    wait_for_readers,
    write_line,
)
from fulltune.runtime.version import __version__

if TYPE_CHECKING:
    from fulltune.config import Config

app = typer.Typer(
    name="fulltune",
    cls=Program,
    help="Full FP32 fine-tuning, measured against zero-shot and few-shot baselines.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("init")(init)
app.command("predict")(predict)
app.command("verdict")(verdict)
app.command("serve")(serve)
app.command("export")(export)
app.add_typer(models, name="models")
app.command("launch", context_settings=launch.CONTEXT)(launch.launch)


def entry() -> None:
    """Run the console script."""
    sys.excepthook = _unexpected
    warnings.formatwarning = _visible_warning
    replace_unknown_characters()
    wait_for_readers()
    try:
        try:
            typer.main.get_command(app)(prog_name="fulltune")
        finally:  # what help and usage leave in the buffer would fail at exit, without a message
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except OSError as error:
        if not is_unwritable(error):
            raise
        with suppress(typer.Exit), writing_stdout():
            raise error
        sys.exit(1)


@app.command()
@with_common_options
def run(
    common: Common,
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A YAML or JSON file.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Resume a run that was stopped or killed.")
    ] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume even if data, config or packages have changed.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            metavar="N",
            help="Run N seeds, and judge their mean; default: train.seeds. The same call resumes.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train, measure against the baselines, and write the record and the report."""
    if config is None and resume is None:
        raise typer.BadParameter("name a config, or a run with --resume", param_hint="CONFIG")
    if resume is None:
        refuse_unread("with --resume", allow_changed=allow_changed)
    if seeds is not None and resume is not None:
        raise typer.BadParameter("the same call with the config resumes", param_hint="--seeds with --resume")
    loaded = None
    if config is not None:
        with common.answering():
            loaded = common.load(config, overrides)
            from fulltune.config import with_one_seed

            loaded = loaded if seeds != 1 else with_one_seed(loaded)
    if loaded is not None and resume is None and (loaded.train.seeds if seeds is None else seeds) != 1:
        _run_seeds(common, loaded, seeds)
        return
    with common.answering() as progress:
        record = fulltune.run(
            loaded,
            out=common.out,
            overrides=() if config else overrides or (),
            progress=progress,
            resume=resume,
            allow_changed=allow_changed,
        )
    _finish_run(common, record)


@app.command()
@with_common_options
def plan(
    common: Common,
    config: ConfigFile,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure nothing: data, steps, memory by a formula, in seconds.")
    ] = False,
    learning_curve: Annotated[
        bool,
        typer.Option("--learning-curve", help="Train on growing parts of the rows, and estimate the gain from more."),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Show what a run of a config would do, and every problem that it has, without training."""
    if learning_curve and quick:
        raise typer.BadParameter("a learning curve needs trainings", param_hint="--quick")
    if learning_curve:
        _learning_curve(common, config, overrides)
        return
    with common.answering():
        loaded = common.load(config, overrides)
        result = fulltune.plan(loaded, out=common.out, quick=quick)
        from fulltune.cli.render import runs

    common.answer(result.to_json(), runs.plan(result))


@app.command()
@with_common_options
def evaluate(
    common: Common,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run id, a local folder, or any model that a config takes.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Task and data; a run id has its own.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Score a model on the evaluation rows, without training."""
    from fulltune.cli.render import runs

    with common.answering() as progress:
        evaluation = fulltune.evaluate(model, config, out=common.out, overrides=overrides or (), progress=progress)
    common.answer(evaluation.to_json(), runs.evaluation(evaluation))


@app.command()
@with_common_options
def compare(
    common: Common,
    a: Annotated[str, typer.Argument(metavar="A", help="A run: its id, the beginning of its id, a path, or `latest`.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="The run that is compared with A.")] = None,
    question: Annotated[
        str | None,
        typer.Option("--ask", metavar="TEXT", help="Ask both models this; of one run: its base and its tuned model."),
    ] = None,
    database: Annotated[
        str, typer.Option("--db", metavar="NAME", help="text2sql: the database that --ask is about.")
    ] = "",
    data: Annotated[bool, typer.Option("--data", help="Show the rows that became right or wrong from A to B.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Config for --ask if neither model is a run.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Compare from A to B: two runs row by row, one question (--ask), or rows that changed (--data).

    Every difference is B minus A, so `improved` says that B is better.

    `base` and `tuned` name the two ends of the newest run. With --data, one run is compared with its best baseline, and
    RUN#tfidf names another one.
    """
    from fulltune.cli.render import answers

    if question is None:
        refuse_unread("with --ask", db=database, config=config, set=overrides)
    else:
        refuse_unread("without --ask", data=data)
    if question is not None:
        with common.answering():
            from fulltune.pipeline.ask import ask

            asked = ask(question, a, b, place=database, config=config, out=common.out, overrides=overrides or ())
        common.answer(asked.to_json(), answers.asked(asked))
    elif data:
        _changed_rows(common, a, b)
    elif b is None:
        raise typer.BadParameter("name two runs, or add --ask or --data", param_hint="B")
    else:
        _compare_runs(common, a, b)


@app.command("lr-find")
@with_common_options
def lr_find(
    common: Common,
    config: ConfigFile,
    overrides: Overrides = None,
) -> None:
    """Find a learning rate: a range test, then short trainings compared on held-out rows."""
    with common.answering() as progress:
        job = common.prepare(config, overrides)
        from fulltune.cli.render import runs

        result = fulltune.find_learning_rate(job, out=common.out, progress=progress)
    common.answer(result.to_json(), runs.learning_rate(result))


@app.command()
@with_common_options
def methods(
    common: Common,
    config: ConfigFile,
    names: Annotated[
        str, typer.Option("--methods", metavar="A,B,…", help="Methods; the others are compared with full.")
    ] = "full,lora,qlora,prompt-tuning",
    rates: Annotated[int, typer.Option("--rates", metavar="N", help="Learning rates to try per method.")] = 3,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", metavar="N", help="Runs per method at its best rate; default: train.seeds.", show_default=False
        ),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", metavar="N", help="Optimizer steps per training.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", metavar="N", help="Training tokens per training, approximately; an alternative to --max-steps."
        ),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Stop unpromising trials early.")] = False,
    overrides: Overrides = None,
) -> None:
    """Compare full fine-tuning, LoRA, QLoRA and prompt tuning on your rows; resumes an earlier comparison."""
    with common.answering() as progress:
        comparison = fulltune.compare_methods(
            config,
            methods=[name.strip() for name in names.split(",")],
            rates=rates,
            seeds=seeds,
            max_steps=max_steps,
            tokens=tokens,
            prune=prune,
            out=common.out,
            overrides=overrides or (),
            progress=progress,
            quiet=common.quiet,
        )
        from fulltune.cli.render import runs

    common.answer(comparison.to_json(), runs.methods(comparison))


@app.command()
@with_common_options
def sweep(
    common: Common,
    config: ConfigFile,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="A.B=…", help="LOW..HIGH, LOW..HIGH:log or A,B,C for one key; repeatable."),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", metavar="N", help="Total number of trainings, including those of earlier calls.")
    ] = 20,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the search.")] = 17,
    prune: Annotated[bool, typer.Option("--prune", help="Stop unpromising trials early.")] = False,
    overrides: Overrides = None,
) -> None:
    """Search over any keys of a config, judged on validation rows; resumes an earlier search."""
    with common.answering() as progress:
        result = fulltune.sweep(
            config,
            over=over or (),
            trials=trials,
            seed=seed,
            prune=prune,
            out=common.out,
            overrides=overrides or (),
            progress=progress,
        )
        from fulltune.cli.render import runs

    common.answer(result.to_json(), runs.sweep(result))


@app.command()
@with_common_options
def demo(
    common: Common,
    name: Annotated[str, typer.Argument(metavar="NAME", help="contracts, tales or text2sql.")],
    overrides: Overrides = None,
) -> None:
    """Run a complete example on generated data, without files or network; exits with 0 whatever the verdict is."""
    from fulltune.cli.demo import prepare

    with common.answering() as progress:
        config = prepare(name, common.out)
        record = fulltune.run(config, out=common.out, overrides=overrides or (), progress=progress)
    _answer_record(common, record, f"Rows and config: {config}; put your own there and `fulltune run {config}`")


@app.command()
@with_common_options
def doctor(
    common: Common,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="CONFIG", help="Check that a run of this config resumes exactly.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Number of training steps for --resume.  [default: 8]")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Show versions, the machine, fast paths, and what is missing for which feature."""
    if resume is not None:
        _check_resume(common, resume, 8 if steps is None else steps, overrides)
        return
    refuse_unread("with --resume", steps=steps, set=overrides)
    from fulltune.cli.doctor import diagnose
    from fulltune.cli.render import runs

    with common.answering():
        result = diagnose(common.out)
    common.answer(result.to_json(), runs.diagnosis(result))


def _run_seeds(common: Common, config: Config, seeds: int | None) -> None:
    """Run several seeds, print the verdict on their mean, and exit with 3 if it is rejected."""
    with common.answering() as progress:
        from fulltune.cli.render import runs

        found = fulltune.run_seeds(config, seeds=seeds, out=common.out, progress=progress)
    common.answer(found.to_json(), runs.seeded(found))
    if found.outcome in ("rejected", "stopped"):
        raise typer.Exit(3)


def _check_resume(common: Common, config: Path, steps: int, overrides: list[str] | None) -> None:
    """Check that a training resumes exactly, print what was compared, and exit with 1 if it does not."""
    with common.answering() as progress:
        job = common.prepare(config, overrides)
        from fulltune.cli.render import runs
        from fulltune.pipeline.resume_check import check_resume

        result = check_resume(job, steps=steps, progress=progress)
    common.answer(result.to_json(), runs.resume_check(result))
    if not result.is_exact:
        raise typer.Exit(1)


def _compare_runs(common: Common, a: str, b: str) -> None:
    """Compare two runs row by row, and print the result."""
    from fulltune.cli.render import runs

    if {a, b} & {"base", "tuned"}:
        run = next((name for name in (a, b) if name not in ("base", "tuned")), "latest")
        hint = f"the record of a run has this comparison; its rows: `fulltune compare base {run} --data`"
        raise typer.BadParameter(hint, param_hint="A B")
    with common.answering():
        result = fulltune.compare(a, b, out=common.out)
    common.answer(result.to_json(), runs.comparison(result))


def _ends(a: str, b: str | None) -> tuple[str, str | None, str]:
    """Return the runs to compare, and the system of the first.

    Without a second run, a system of the first is compared with its tuned model: the one that is named after a ``#``,
    or the best baseline. ``base`` and ``tuned`` are those of the other run that is named, or of the newest one.
    """
    if a == "tuned" or b == "base":
        run = next((name for name in (a, b) if name not in ("base", "tuned", None)), "latest")
        raise typer.BadParameter(
            f"rows are shown from the base to the tuned model: write `fulltune compare base {run} --data`",
            param_hint="A B",
        )
    if a == "base":
        return ("latest" if b in (None, "tuned") else b), None, "zero_shot"
    run, _, system = (a, "", "") if paths.exists(Path(a)) else a.partition("#")
    return run, (None if b == "tuned" else b), system


def _changed_rows(common: Common, a: str, b: str | None) -> None:
    """Print the rows that became right or wrong from A to B."""
    from fulltune.cli.render import answers
    from fulltune.metrics.run_comparison import changed_rows
    from fulltune.store.registry.registry import evidence

    before, after, system = _ends(a, b)
    with common.answering():
        folders = evidence(before, common.out), evidence(after, common.out) if after else None
        result = changed_rows(*folders, system=system)
    common.answer(result.to_json(), answers.changed_rows(result))


def _learning_curve(common: Common, config: Path, overrides: list[str] | None) -> None:
    """Train on growing parts of the rows, and print the scores."""
    with common.answering() as progress:
        job = common.prepare(config, overrides)
        from fulltune.cli.render import runs

        result = fulltune.learning_curve(job, out=common.out, progress=progress)
    common.answer(result.to_json(), runs.learning_curve(result))


def _version(wanted: bool) -> None:
    """Print the version and exit, if that is wanted."""
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Read the options of the program itself; commands have their own."""


def _finish_run(common: Common, record: fulltune.Record) -> None:
    """Print a record, and exit with 3 if the tuned model was rejected or training was stopped.

    A worker of several processes exits with 0: launchers take any other code for a crash, and restart the job. Its
    code goes to `fulltune launch`, which exits with it.
    """
    _answer_record(common, record)
    code = 3 if record.outcome in ("rejected", "stopped") else 0
    if distributed.launched() > 1:
        report_exit_code(code)
    elif code:
        raise typer.Exit(code)


def _answer_record(common: Common, record: fulltune.Record, hint: str = "") -> None:
    """Print a record, with what to do next."""
    from fulltune.cli.render import registry, runs

    hints = [hint, registry.after_run(record.run_id, common.out)]
    shown = runs.record(record, common.out / record.run_id, "\n".join(filter(None, hints)), noted=not common.quiet)
    common.answer(record.to_json(), shown)


def _unexpected(error_type: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug, and ask for a report.

    With ``python -i`` or ``PYTHONINSPECT`` every end of a command arrives here, so that a prompt can follow.
    """
    if issubclass(error_type, SystemExit):
        return
    write_line(sys.stderr, "".join(traceback.format_exception(error_type, error, trace)).rstrip())
    write_line(sys.stderr, "error: this is a bug in fulltune; please report it with the lines above.")


def _visible_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning in one line without control characters; users get no line of the source code."""
    if category is UserWarning:
        return f"Warning: {escape_controls(str(message))}\n"
    return f"{filename}:{lineno}: {category.__name__}: {escape_controls(str(message))}\n"
