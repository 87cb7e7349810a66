"""Run one part of a comparison of methods in a process of its own.

    python -m fulltune.experiments.methods.worker ORDER.json

A process of its own makes its peak of memory mean something, and keeps what one method leaves behind (patched layers, a
killed process) from the next. The answer lies beside the order as ``*.answer.json``.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fulltune import errors
from fulltune.config import AdapterConfig, Config, dump_config, load_config
from fulltune.errors import FulltuneError, Problem
from fulltune.records.methods import Tried
from fulltune.records.run import Model
from fulltune.runtime.files import atomic_text
from fulltune.runtime.progress import Progress, open_progress
from fulltune.store.runs import list_runs


class ArmDied(FulltuneError):
    """A process ended without an answer."""


class Order(Model):
    """What to do.

    Attributes:
        kind: ``prepare`` (check the job, count its steps, answer the baselines), ``search`` (try rates) or ``run``.
        config: The job, with its validation rows and the seed of its split.
        methods: Those compared, for ``prepare``; else the one concerned.
        rates: To try, or the one to run with.
        seed: Of the run.
        prune: End trials early.
        out: Where runs live.
        folder: Of the comparison.
        quiet: No progress.
    """

    kind: Literal["prepare", "search", "run"]
    config: dict[str, Any]
    methods: tuple[str, ...]
    rates: tuple[float, ...] = ()
    seed: int = 17
    prune: bool = False
    out: str
    folder: str
    quiet: bool = False


class Refusal(Model):
    """An error that a user can mend, or that tells why a method does not apply."""

    kind: str
    problems: tuple[dict[str, str], ...]

    def error(self) -> FulltuneError:
        found = getattr(errors, self.kind, FulltuneError)
        plain = found.__init__ is FulltuneError.__init__
        return (found if plain else FulltuneError)([Problem(**problem) for problem in self.problems])


class Answer(Model):
    """What came of it: of ``prepare`` the plan's counts, of ``search`` the trials, of ``run`` the run's id."""

    refused: Refusal | None = None
    steps: int = 0
    tokens_per_step: float = 0.0
    rows: dict[str, int] = Field(default_factory=dict)
    objective: str = ""
    higher_is_better: bool = False
    tried: tuple[Tried, ...] = ()
    run_id: str = ""
    device_bytes: int = 0


def answer_path(order: Path) -> Path:
    """Where the answer to an order lies."""
    return order.with_suffix(".answer.json")


def obey(order: Order, progress: Progress) -> Answer:
    """Do it in this process. An error of fulltune's own is an answer too."""
    try:
        return {"prepare": _prepare, "search": _search, "run": _run}[order.kind](order, progress)
    except FulltuneError as error:
        problems = tuple(problem.to_dict() for problem in error.problems)
        return Answer(refused=Refusal(kind=type(error).__name__, problems=problems))


def in_a_process(order: Order, path: Path) -> Answer:
    """Do it in a new process, which reads the order from ``path``.

    Raises:
        ArmDied: The process ended without an answer; tells how.
    """
    answer = answer_path(path)
    done = subprocess.run(
        [sys.executable, "-m", "fulltune.experiments.methods.worker", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if order.quiet else None,
        check=False,
    )
    if done.returncode == 0 and answer.exists():
        return Answer.model_validate_json(answer.read_text(encoding="utf-8"))
    if done.returncode < 0:
        why = " (often a lack of memory)" if done.returncode == -9 else ""
        raise ArmDied(f"its process was killed by signal {-done.returncode}{why}")
    raise ArmDied(f"its process ended with exit code {done.returncode}", fix="look at what it wrote before")


def of_method(config: Config, method: str) -> Config:
    """The config for another method: keys of ``adapter`` that it does not read are left out."""
    from fulltune.runtime import plugins

    reads = plugins.load("method", method).reads
    kept = {name: value for name, value in config.adapter if name in reads}
    return config.model_copy(update={"method": method, "adapter": AdapterConfig(**kept)})


def _prepare(order: Order, progress: Progress) -> Answer:
    """Check the whole job once, and put the baselines' answers into the cache, so that no run pays for them."""
    from fulltune.evaluation.baselines import choose_shots
    from fulltune.evaluation.evaluate import score_baselines
    from fulltune.experiments.trials import objective
    from fulltune.pipeline.job import prepare_job
    from fulltune.pipeline.loading import load_model
    from fulltune.pipeline.planning.measured_plan import make_plan
    from fulltune.runtime import plugins

    config = load_config(order.config)
    config = of_method(config, config.method)
    job = prepare_job(config, order.out)
    job.check_audit()
    plan = make_plan(job)
    shots = choose_shots(job.task, config, job.base.family, job.data.train.examples, job.data.eval.examples)
    # A method that takes room of the window leaves less to the baselines it is compared with.
    windows = {plugins.load("method", name).reserved(of_method(config, name).adapter): name for name in order.methods}
    for name in windows.values():
        base = load_model(of_method(job.config, name), job.task, order.out)
        score_baselines(
            job.config,
            job.task,
            job.data,
            base,
            shots,
            out=job.out,
            sink=lambda prediction: None,
            progress=progress,
        )
    goal = objective(config)
    return Answer(
        steps=plan.total_steps,
        tokens_per_step=plan.tokens / plan.steps_per_epoch,
        rows=plan.rows,
        objective=goal.name,
        higher_is_better=goal.direction == "higher",
    )


def _search(order: Order, progress: Progress) -> Answer:
    from fulltune.experiments.search import Choice, search
    from fulltune.experiments.trials import Bench
    from fulltune.pipeline.job import parts

    (method,) = order.methods
    config = of_method(load_config(order.config), method)
    parts(config)
    space = {"train.learning_rate": Choice(order.rates)}
    tried = search(
        config,
        space,
        Path(order.folder) / f"search-{method}",
        Bench(order.out, progress),
        trials=len(order.rates),
        prune=order.prune,
        first=[{"train.learning_rate": rate} for rate in order.rates],
    )
    return Answer(tried=tuple(tried))


def _run(order: Order, progress: Progress) -> Answer:
    import torch

    from fulltune.pipeline.run import run

    (method,), (rate,) = order.methods, order.rates
    config = of_method(load_config(order.config), method)
    train = config.train.model_copy(update={"learning_rate": rate, "seed": order.seed})
    config = config.model_copy(update={"train": train})
    record = run(config, out=order.out, progress=progress, resume=_unfinished(config, order.out))
    device = torch.accelerator.max_memory_allocated() if torch.accelerator.is_available() else 0
    return Answer(run_id=record.run_id, device_bytes=device)


def _unfinished(config: Config, out: str) -> str | None:
    """The newest run of this very config that was interrupted or killed, and can go on."""
    text = dump_config(config)
    for run in reversed(list_runs(out)):
        kept = run.path / "config.yaml"
        is_cut = run.status.state in ("stopped", "killed") and not (run.path / "record.json").exists()
        # Nothing to go on with lies in a run that ended before its training was described.
        if is_cut and (run.path / "resume.json").exists() and kept.read_text(encoding="utf-8") == text:
            return run.run_id
    return None


def in_this_process(order: Order, path: Path) -> Answer:
    """Do it here; the answer is written as well."""
    with redirect_stdout(sys.stderr):
        answer = obey(order, open_progress(order.quiet))
    atomic_text(answer_path(path), answer.to_json())
    return answer


if __name__ == "__main__":
    in_this_process(Order.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[1]))
