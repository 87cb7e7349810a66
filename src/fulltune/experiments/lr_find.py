"""Find a learning rate: a range test, then short trainings at the rates that it suggests, compared on held-out rows.

    found = fulltune.find_learning_rate("config.yaml")
    print(found.rate, found.reason)

The result is advice: evaluation rows are not used, and the config is not changed.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fulltune.config import ConfigSource, load_config, refuse_folds
from fulltune.errors import DataError, ModelError
from fulltune.experiments import range_test
from fulltune.models.bundle import Bundle, trained_state
from fulltune.pipeline.head_start import with_started_head
from fulltune.pipeline.job import Job, prepare_job
from fulltune.pipeline.planning.measured_plan import make_plan
from fulltune.pipeline.train import mover
from fulltune.records.learning_rate import Candidate, LearningRate, SweptRate
from fulltune.report import rates as report
from fulltune.runtime.progress import Progress, progress_of
from fulltune.store.runs import new_run_id
from fulltune.tasks.base import Features
from fulltune.training.arguments import total_steps
from fulltune.training.checkpoints.random_state import randomness_kept
from fulltune.training.fit import fit

#: Lowest and highest rate of the range test, its number of rates, and steps of a short training.
LOW, HIGH, STEPS, CONFIRM_STEPS = 1e-7, 1.0, 100, 60

#: Without data.valid every tenth training sequence is held out, up to a maximum.
HELD_OUT, MOST_HELD_OUT = 10, 256


@dataclass(frozen=True)
class _Bench:
    """A job with the sequences of its short trainings.

    Attributes:
        job: The job.
        model: The model that is trained, and restored after each training.
        train: Sequences to train on.
        held_out: Sequences that rates are compared on.
    """

    job: Job
    model: Bundle
    train: Sequence[Features]
    held_out: Sequence[Features]

    @property
    def class_weights(self) -> Sequence[float] | None:
        return self.job.task.class_weights(self.job.data.train.examples)


def find_learning_rate(
    config: ConfigSource | Job | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    steps: int = STEPS,
    confirm_steps: int = CONFIRM_STEPS,
    progress: Progress | bool | None = None,
    **options: Any,
) -> LearningRate:
    """Find a learning rate for a job.

    Loss, batch, optimizer and schedule are those of the job; penalties that need the base (L2-SP, EWC, distillation)
    and replay are left out. Candidates are compared on ``data.valid``, else on every tenth training sequence, which is
    then not trained on.

    Args:
        config: As in :func:`fulltune.run`, or a job that is prepared.
        overrides, progress, options: As in :func:`fulltune.run`; a job has them already.
        out: Folder of the plot.
        steps: Rates of the range test, one optimizer step each.
        confirm_steps: Optimizer steps of a short training.

    Raises:
        FulltuneError: Anything that would stop the run before its first step.
    """
    started = time.perf_counter()
    progress = progress_of(progress)
    with randomness_kept(), tempfile.TemporaryDirectory() as place:
        job = config if isinstance(config, Job) else prepare_job(load_config(config, overrides, options=options), out)
        refuse_folds(job.config, "a search for a learning rate")
        config = job.config
        bench = _bench(job)
        bench.job.method.prepare(bench.model)
        kept = _Weights(bench.model)
        points, is_whole = _sweep(bench, steps, Path(place), progress)
        kept.restore()
        reading = range_test.read(points, is_whole=is_whole)
        batches = bench.job.micro_batches(bench.train)
        length = min(confirm_steps, total_steps(config.train, len(bench.train), batches))
        tried, start = [], math.nan
        for rate in reading.candidates:
            candidate, start = _confirm(bench, rate, length, Path(place), progress)
            tried.append(candidate)
            kept.restore()
    advised, reason = _answer(reading, tried, start)
    swept = zip(points, range_test.smoothed([loss for _, loss in points]), strict=True)
    result = LearningRate(
        task=config.task,
        model=config.model,
        rate=advised,
        reason=reason,
        asked=config.train.rate,
        start=start,
        candidates=tuple(tried),
        sweep=tuple(SweptRate(rate=rate, loss=loss, smoothed=mean) for (rate, loss), mean in swept),
        held_out=len(bench.held_out),
        steps=length,
        weights=kept.sha256,
        seconds=round(time.perf_counter() - started, 3),
        plot=str(Path(out) / f"lr-find-{new_run_id(config.task, config.model)}.svg"),
    )
    _draw(result)
    return result


def _bench(job: Job) -> _Bench:
    make_plan(job)
    model = job.model_to_train()
    model = with_started_head(job, model, job.data.train.examples)
    train, held_out = (job.features, job.curve) if job.data.valid else _held_out(job.features)
    return _Bench(job, model, train, held_out)


def _held_out(features: Sequence[Features]) -> tuple[list[Features], list[Features]]:
    """Return training sequences, and those of every tenth row (a row may have several), evenly spaced."""
    rows = list(dict.fromkeys(item.row_id for item in features))
    every = max(HELD_OUT, math.ceil(len(rows) / MOST_HELD_OUT))
    chosen = set(rows[every // 2 :: every])
    train = [item for item in features if item.row_id not in chosen]
    held_out = [item for item in features if item.row_id in chosen]
    if not (train and held_out):
        raise DataError(
            f"{len(rows)} training rows",
            expected=f"at least {HELD_OUT}, to compare rates on some of them",
            fix="bring more rows, or name data.valid",
            field="data.train",
        )
    return train, held_out


def _sweep(bench: _Bench, steps: int, place: Path, progress: Progress) -> tuple[list[tuple[float, float]], bool]:
    with progress.stage("range test", total=steps, unit="step") as bar:
        return range_test.sweep(
            bench.model,
            bench.job.method.features(bench.model, bench.train),
            bench.job.config,
            range_test.rates(LOW, HIGH, steps),
            output_dir=place,
            class_weights=bench.class_weights,
            on_step=lambda rate, loss: bar.advance(note=f"rate {rate:.1e}, loss {loss:.4g}"),
        )


def _confirm(bench: _Bench, rate: float, steps: int, place: Path, progress: Progress) -> tuple[Candidate, float]:
    """Train briefly with the schedule of the job; return the losses on held-out rows after and before."""
    short = {"learning_rate": rate, "max_steps": steps, "evaluations": 1}
    config = bench.job.config.model_copy(
        update={
            "train": bench.job.config.train.model_copy(update=short),
            "guards": bench.job.config.guards.model_copy(update={"divergence": None}),
            "trainer": bench.job.config.trainer | {"save_strategy": "no", "report_to": "none"},
        }
    )
    with progress.stage(f"rate {rate:.1e}", total=steps, unit="step") as bar:
        trained = fit(
            bench.model,
            bench.job.method,
            bench.train,
            bench.held_out,
            config,
            output_dir=place,
            class_weights=bench.class_weights,
            on_step=mover(bar),
        )
    curve = {step.step: step.eval_loss for step in trained.steps if step.eval_loss is not None}
    ended = curve.get(steps, math.nan) if trained.stopped is None else math.nan
    return Candidate(rate=rate, loss=ended), curve.get(0, math.nan)


def _answer(reading: range_test.Reading, tried: Sequence[Candidate], start: float) -> tuple[float | None, str]:
    """Return the rate with the lowest loss after its short training, if that is below the loss before training."""
    finite = [candidate for candidate in tried if math.isfinite(candidate.loss)]
    if not tried:
        return None, _sentence(reading.reason)
    best = min(finite, key=lambda candidate: candidate.loss, default=None)
    if best is None or not best.loss < start:
        return None, (
            f"No clear answer: none of {len(tried)} short trainings brought the held-out loss below {start:.4g}, where "
            "it was before them."
        )
    others = ", ".join(f"{one.loss:.4g} at {one.rate:.1e}" for one in tried if one is not best)
    return best.rate, (
        f"{_sentence(reading.reason)[:-1]}; a short training at {best.rate:.1e} brought the held-out loss from "
        f"{start:.4g} to {best.loss:.4g}, against {others}."
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _draw(result: LearningRate) -> None:
    path = Path(result.plot)
    path.parent.mkdir(parents=True, exist_ok=True)
    points = [(point.rate, point.loss, point.smoothed) for point in result.sweep]
    tried = [(candidate.rate, candidate.loss) for candidate in result.candidates]
    path.write_text(report.plot(points, tried, result.rate, result.reason), encoding="utf-8")


class _Weights:
    """A copy of a model's weights, with a hash that proves their restoration."""

    def __init__(self, bundle: Bundle) -> None:
        self.model = bundle.model
        self.state = {name: value.detach().clone() for name, value in trained_state(self.model).items()}
        self.sha256 = weights_sha256(self.model)

    def restore(self) -> None:
        """Restore the weights.

        Raises:
            ModelError: The weights are not the same as before.
        """
        self.model.load_state_dict(self.state, strict=False)  # it has no frozen parameters
        actual = weights_sha256(self.model)
        if actual != self.sha256:
            raise ModelError(f"the weights did not come back ({actual})", expected=self.sha256, field="model")


def weights_sha256(model: torch.nn.Module) -> str:
    """Return one hash over the names and bytes of all tensors of a model."""
    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        octets: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        whole.update(name.encode())
        whole.update(octets)
    return whole.hexdigest()
