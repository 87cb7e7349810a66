"""Execute one part of a comparison of methods in a process of its own.

    python -m fulltune.experiments.methods.worker JOB.json

In a separate process the peak of the memory belongs to one method alone, and leftovers of one method (patched layers, a
killed process) do not affect the next. The answer is written next to the job spec as ``*.answer.json``.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fulltune import errors
from fulltune.config import AdapterConfig, Config, load_config
from fulltune.errors import FulltuneError, Problem
from fulltune.pipeline.resume import unfinished
from fulltune.records.methods import Tried
from fulltune.records.run import Model
from fulltune.runtime.files import atomic_text
from fulltune.runtime.progress import Progress, open_progress
from fulltune.store.runs import part_of


class WorkerDied(FulltuneError):
    """A worker process ended without an answer."""


class JobSpec(Model):
    """The job of a worker.

    Attributes:
        kind: ``prepare`` (check the job, count its steps, answer the baselines), ``search`` (try rates) or ``run``.
        config: The config, with its validation rows and the seed of its split.
        methods: All methods for ``prepare``; else one method.
        rates: Rates to try, or the rate of the run.
        seed: Seed of the run.
        prune: End trials early.
        out: The runs folder.
        folder: Folder of the comparison.
        quiet: Show no progress.
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
    """An error that a user can fix, or the reason why a method does not apply."""

    kind: str
    problems: tuple[dict[str, str], ...]

    def error(self) -> FulltuneError:
        error_class = getattr(errors, self.kind, FulltuneError)
        plain = error_class.__init__ is FulltuneError.__init__
        return (error_class if plain else FulltuneError)([Problem(**problem) for problem in self.problems])


class Answer(Model):
    """Result of a worker: the counts of the plan (``prepare``), the trials (``search``) or the run id (``run``)."""

    refused: Refusal | None = None
    steps: int = 0
    tokens_per_step: float = 0.0
    epochs: float | None = None
    usual_rates: dict[str, float] = Field(default_factory=dict)
    rows: dict[str, int] = Field(default_factory=dict)
    objective: str = ""
    higher_is_better: bool = False
    tried: tuple[Tried, ...] = ()
    run_id: str = ""
    device_bytes: int = 0


def answer_path(spec: Path) -> Path:
    """Return the path of the answer to a job spec."""
    return spec.with_suffix(".answer.json")


def execute(spec: JobSpec, progress: Progress) -> Answer:
    """Execute a job spec in this process; an error of fulltune is an answer too."""
    try:
        return {"prepare": _prepare, "search": _search, "run": _run}[spec.kind](spec, progress)
    except FulltuneError as error:
        problems = tuple(problem.to_dict() for problem in error.problems)
        return Answer(refused=Refusal(kind=type(error).__name__, problems=problems))


def execute_in_worker(spec: JobSpec, path: Path) -> Answer:
    """Execute a job spec in a new process, which reads it from ``path``.

    Raises:
        WorkerDied: The process ended without an answer; the message has its exit code or signal.
    """
    answer = answer_path(path)
    done = subprocess.run(
        [sys.executable, "-m", "fulltune.experiments.methods.worker", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if spec.quiet else None,
        check=False,
    )
    if done.returncode == 0 and answer.exists():
        return Answer.model_validate_json(answer.read_text(encoding="utf-8"))
    if done.returncode < 0:
        why = " (often a lack of memory)" if done.returncode == -9 else ""
        raise WorkerDied(f"its process was killed by signal {-done.returncode}{why}")
    raise WorkerDied(f"its process ended with exit code {done.returncode}", fix="look at what it wrote before")


def of_method(config: Config, method: str) -> Config:
    """Return the config for another method, without keys of ``adapter`` that the method does not read."""
    from fulltune.runtime import plugins

    reads = plugins.load("method", method).reads
    kept = {name: value for name, value in config.adapter if name in reads}
    return config.model_copy(update={"method": method, "adapter": AdapterConfig(**kept)})


def _prepare(spec: JobSpec, progress: Progress) -> Answer:
    """Check the job once, and write the answers of the baselines to the cache, so that no run pays for them."""
    from fulltune.pipeline.job import prepare_job
    from fulltune.pipeline.model_loading import load_model
    from fulltune.runtime import plugins

    config = load_config(spec.config)
    config = of_method(config, config.method)
    job = prepare_job(config, spec.out)  # mistakes in the rows are reported before torch is imported
    from fulltune.evaluation.baselines.cache import cache_parts
    from fulltune.evaluation.baselines.catalog import gather
    from fulltune.evaluation.evaluate import score_baselines
    from fulltune.experiments.trials import objective
    from fulltune.pipeline.planning.measured_plan import make_plan
    from fulltune.training.defaults import learning_rate

    plan = make_plan(job)
    given = gather(job.config, job.task, job.data, job.base, len(job.features))
    # A method that uses positions of the window leaves fewer to the baselines that it is compared with.
    windows = {plugins.load("method", name).reserved(of_method(config, name).adapter): name for name in spec.methods}
    for name in windows.values():
        base = load_model(of_method(job.config, name), job.task, spec.out)
        key = cache_parts(job.task, job.config, base, job.data.train.table, job.data.eval.table)
        score_baselines(
            replace(given, base=base), job.data, key, job.out, sink=lambda prediction: None, progress=progress
        )
    goal = objective(config)
    return Answer(
        steps=plan.total_steps,
        tokens_per_step=plan.tokens / plan.steps_per_epoch,
        epochs=job.config.train.epochs,
        usual_rates={name: learning_rate(job.kind, name) for name in {*spec.methods, config.method}},
        rows=plan.rows,
        objective=goal.name,
        higher_is_better=goal.direction == "higher",
    )


def _search(spec: JobSpec, progress: Progress) -> Answer:
    from fulltune.experiments.search import Choice, search
    from fulltune.experiments.trials import Bench
    from fulltune.pipeline.job import checked_task_and_method

    (method,) = spec.methods
    config = of_method(load_config(spec.config), method)
    checked_task_and_method(config)
    space = {"train.learning_rate": Choice(spec.rates)}
    tried = search(
        config,
        space,
        Path(spec.folder) / f"search-{method}",
        Bench(spec.out, progress),
        trials=len(spec.rates),
        prune=spec.prune,
        first=[{"train.learning_rate": rate} for rate in spec.rates],
    )
    return Answer(tried=tuple(tried))


def _run(spec: JobSpec, progress: Progress) -> Answer:
    import torch

    from fulltune.pipeline.run import run

    (method,), (rate,) = spec.methods, spec.rates
    config = of_method(load_config(spec.config), method)
    train = config.train.model_copy(update={"learning_rate": rate, "seed": spec.seed})
    config = config.model_copy(update={"train": train})
    with part_of(Path(spec.folder).name):
        record = run(config, out=spec.out, progress=progress, resume=unfinished(config, spec.out))
    device = torch.accelerator.max_memory_allocated() if torch.accelerator.is_available() else 0
    return Answer(run_id=record.run_id, device_bytes=device)


def execute_and_write(spec: JobSpec, path: Path) -> Answer:
    """Execute a job spec in this process, and write the answer."""
    with redirect_stdout(sys.stderr):
        answer = execute(spec, open_progress(spec.quiet))
    atomic_text(answer_path(path), answer.to_json())
    return answer


if __name__ == "__main__":
    execute_and_write(JobSpec.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[1]))
