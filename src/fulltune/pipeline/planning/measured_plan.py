"""Measure a plan: a few real steps and answers, extrapolated to the complete job.

Everything runs on a model that is loaded for this and thrown away; the base is only read.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.config import Config
from fulltune.data.findings import unscored_rows
from fulltune.data.summary import data_summary
from fulltune.data.tokens import LENGTH_KINDS
from fulltune.errors import ConfigError, ModelError
from fulltune.evaluation.baselines import probe, prompted
from fulltune.evaluation.baselines.base import Given
from fulltune.evaluation.baselines.catalog import WITHOUT_MODEL, answered_rows, chosen, gather, predictor
from fulltune.evaluation.retention import BaseOutputs
from fulltune.evaluation.retention.abilities import abilities
from fulltune.models.bundle import Bundle
from fulltune.models.fast_kernels import fast_kernels
from fulltune.models.token_ids import text_ids
from fulltune.pipeline.job import Job, all_or_problems
from fulltune.pipeline.planning import plan as planning
from fulltune.pipeline.planning.footprint import Footprint
from fulltune.pipeline.planning.memory import COPY, SMALL, essential, parts, proposals, refusal, rough_step_bytes
from fulltune.pipeline.planning.probe_steps import TIMED, Pace, Probe, Timing, footprint, timing, widest
from fulltune.records.plan import Plan
from fulltune.runtime import distributed, machine, plugins
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.tasks.base import Example, Features
from fulltune.training.batches import buckets
from fulltune.training.checkpoints.random_state import randomness_kept
from fulltune.training.device import fast_paths, training_device
from fulltune.training.guards.choosing_metric import choosing_metric
from fulltune.training.regularization import costs, general_text

#: Seconds that timed steps and answers may take together, and those of one system's answers among them. Both are
#: exceeded only by the least that must be measured: two rows of each system.
SECONDS, ANSWER_SECONDS = 40.0, 5.0

#: Rows of the small number that each system answers, and of each part of the larger one; and rows per retention set.
ROWS = (2, 8)

#: Parts of the larger number, of rows of similar length, from short to long.
BATCHES = 3

#: Seconds up to which answers are measured a second time.
_CHECKED = 1.0

#: Seconds of a forward pass for one of forward and backward (2 of 6 operations a weight and token: Kaplan et al. 2020,
#: "Scaling Laws for Neural Language Models", table 1).
_FORWARD = 1 / 3


def checked_plan(job: Job) -> Plan:
    """Return the plan of a run that is about to begin.

    Memory is measured unless the job clearly fits: a rough upper bound is below half of the machine's memory. For
    several processes the engine's formula is used.

    Raises:
        ConfigError: The job cannot work, or does not fit in memory.
    """
    plan = counted_plan(job)
    if _plainly_fits(job, plan):
        return plan
    with _Rehearsal(job) as rehearsal:
        return plan.model_copy(update={"memory": rehearsal.memory(plan)})


def full_plan(job: Job, prepared: float) -> Plan:
    """Return the plan with measured memory and time.

    Args:
        job: The job.
        prepared: Seconds that loading and auditing took.

    Raises:
        ConfigError: The job cannot work, or does not fit in memory.
    """
    plan = counted_plan(job)
    with pinned_kernels(job.config.speed.kernels), _Rehearsal(job) as rehearsal:
        plan = plan.model_copy(update={"memory": rehearsal.memory(plan)})
        with machine.Waiting() as others:
            seconds = {"load and audit": prepared, **rehearsal.seconds(plan)}
    seconds = {name: value * (1 if name in plan.baselines else plan.trainings) for name, value in seconds.items()}
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    return plan.model_copy(update={"seconds": rounded, "waiting": others.fraction, "cores": others.cores})


def crossed_plan(job: Job, fold: Plan) -> Plan:
    """Return the plan of cross-validation: that of the final model, and the time of all trainings.

    Args:
        job: The job of the run, whose training rows are all rows.
        fold: The measured plan of one fold.
    """
    plan, folds = counted_plan(job), job.config.data.folds or 1
    seconds = {name: folds * value for name, value in fold.seconds.items()}
    longer = plan.total_steps / max(1, fold.total_steps)
    # The final model is trained and looked at too, but its answers are not needed.
    for name in ("load and audit", "train", "evaluation curve"):
        seconds[name] = seconds.get(name, 0.0) + longer * fold.seconds.get(name, 0.0)
    return plan.model_copy(
        update={
            "memory": fold.memory,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "waiting": fold.waiting,
            "cores": fold.cores,
        }
    )


def counted_plan(job: Job) -> Plan:
    """Return the plan before anything is measured, with the findings of the audit about rows that do not fit."""
    findings = job.audit.findings
    plan = make_plan(job, unscored_rows(findings))
    warnings = job.audit.warnings(without=LENGTH_KINDS)
    too_long = tuple(found.message for found in findings if found.kind in LENGTH_KINDS)
    settings = job.config.data
    summary = data_summary(
        job.audit, plan.rows, max_length=settings.max_length, padding=plan.padding, count_leaks=settings.allow_leaks
    )
    return plan.model_copy(update={"too_long": too_long, "warnings": warnings, "data": summary})


def _plainly_fits(job: Job, plan: Plan) -> bool:
    if plan.machine_bytes is None or distributed.launched() > 1:
        return True
    rows, width = widest(job.config, job.features, job.base.family)
    step = rough_step_bytes(job.base.model.config, rows, width)
    beside = 4 * plan.parameters if job.task.head != job.base.head else 0
    return step is not None and plan.memory_bytes + beside + step < SMALL * plan.machine_bytes


class _Rehearsal:
    """A copy of the model that real steps are measured on, with a temporary folder."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.base_bytes = sum(one.nbytes for one in job.base.model.parameters())
        self.program_bytes = machine.rss_bytes() - self.base_bytes
        self._randomness = randomness_kept()
        self._folder = tempfile.TemporaryDirectory(prefix="fulltune-")

    def __enter__(self) -> _Rehearsal:
        self._randomness.__enter__()
        folder = Path(self._folder.__enter__())
        config, task, examples = self.job.config, self.job.task, self.job.data.train.examples
        started = time.perf_counter()
        student = self.job.another_model()
        loaded = time.perf_counter()
        task.begin(student, examples)
        method = plugins.load("method", config.method)(config)
        method.prepare(student)
        prepared = time.perf_counter() - loaded
        # A method records the weights before training and compares them afterwards.
        self.around_training = 2 * prepared + (loaded - started if self._keeps_base else 0.0)
        self.probe = Probe(student, method, self.job.features, task.class_weights(examples), folder)
        return self

    def __exit__(self, *error: Any) -> None:
        del self.probe
        self._folder.__exit__(*error)
        self._randomness.__exit__(*error)

    def memory(self, plan: Plan) -> dict[str, int]:
        """Return bytes by part.

        Raises:
            ConfigError: More than the machine has.
        """
        config, limit = self.job.config, plan.machine_bytes
        self.found = footprint(self.probe, config)
        machine.give_back_freed_pages()
        # Kernels and libraries allocate tables when they first compute something.
        program = max(self.program_bytes, machine.rss_bytes() - self.base_bytes - self.found.weights)
        base = self.base_bytes if self._keeps_base else 0
        held = {"program": program, "base": base, "steps": plan.total_steps}
        taken = parts(config, self.found, **held)
        if limit is None or sum(taken.values()) <= limit:
            return taken
        if essential(taken) <= limit:
            return {name: size for name, size in taken.items() if name != COPY}
        ways = proposals(config, self.found, self._recomputing(), limit, **held)
        raise refusal(taken, limit, list(ways))

    def seconds(self, plan: Plan) -> dict[str, float]:
        """Return the seconds of each stage of a run."""
        job = self.job
        end = time.perf_counter() + SECONDS
        given = gather(job.config, job.task, job.data, job.base, len(job.features))
        with fast_kernels(job.base.model), fast_kernels(self.probe.student.model):
            known = {name: self._baseline(name, given) for name in chosen(job.task, job.config.baselines)}
            evaluated = self._evaluated(known)
            retention = self._retention_seconds()
        timed = self._timing(
            plan.effective_batch, self.job.curve if plan.evaluations else (), end - time.perf_counter()
        )
        a_step, a_token = line(timed.steps)
        epochs = plan.total_steps / plan.steps_per_epoch
        steps = a_step * plan.total_steps + a_token * plan.tokens * epochs
        known["train"] = self.around_training + timed.setup + steps
        tokens, seconds = timed.evaluation or (plan.tokens * epochs, steps * _FORWARD)
        known["evaluation curve"] = self._curve(plan, seconds / tokens, evaluated)
        known |= {"evaluate": evaluated, "retention": retention}
        return known

    def _curve(self, plan: Plan, a_token: float, evaluated: float) -> float:
        """Return the seconds of all evaluations during training: the loss, and answers that choose the best step."""
        job = self.job
        if not job.curve or not plan.evaluations:
            return 0.0
        points = len(plan.evaluations) + 1  # before the first step too
        loss = a_token * sum(len(item.input_ids) for item in job.curve)
        chooses = job.config.guards.overfitting is not None and job.data.valid is not None
        answers = chooses and choosing_metric(job.config.guards, job.task) is not None
        rows = len(job.data.shown) / len(job.data.eval.examples)
        return points * (loss + (evaluated * rows if answers else 0.0))

    @property
    def _keeps_base(self) -> bool:
        return self.job.task.head != self.job.base.head

    def _recomputing(self) -> Footprint | None:
        config = self.job.config
        if config.train.gradient_checkpointing or not self.probe.student.model.supports_gradient_checkpointing:
            return None
        train = config.train.model_copy(update={"gradient_checkpointing": True})
        return footprint(self.probe, config.model_copy(update={"train": train}))

    def _timing(self, batch: int, curve: Sequence[Features], room: float) -> Timing:
        """Time as many real steps as ``room`` seconds allow; none beyond those of the footprint if one takes longer."""
        config = self.job.config
        rows, seconds = max(self.found.seconds.items())
        measured = rows * (2 if self.found.is_accumulated else 1)
        steps = min(TIMED, int(room / (seconds * batch / measured)) - 1)
        if steps < 1:
            return Timing([(self.found.width * measured, seconds)])
        return timing(self.probe, config, batch, steps, curve)

    def _baseline(self, name: str, given: Given) -> float:
        """Return the seconds of a baseline for all evaluation rows."""
        examples = self.job.data.eval.examples
        if name in WITHOUT_MODEL:
            return _timed(lambda: list(predictor(name, given)(examples)))
        if name == "linear_probe":  # reading takes most of its time
            read = given.train[: probe.rows_read(given, len(examples))]
            return answering_seconds(partial(probe.vectors, given), [*read, *examples])
        rows, _ = answered_rows(name, given, examples)
        if name not in prompted.NAMES:
            return answering_seconds(predictor(name, given), rows)
        asked = answering_seconds(prompted.usual(name, given), rows)
        return asked * (1 + prompted.choosing_rows(name, given) / len(rows))

    def _evaluated(self, known: Mapping[str, float]) -> float:
        """Return the seconds of the tuned model's answers.

        A model with the head of its base answers as the base does zero-shot, unless the method adds to its inputs.
        """
        if not self._keeps_base and self.job.method.stored_as != "adapter" and "zero_shot" in known:
            return known["zero_shot"]
        predict = self.job.task.predictor(self.probe.student, "tuned")
        return answering_seconds(predict, self.job.data.eval.examples)

    def _retention_seconds(self) -> float:
        """Return the seconds for the retention sets, before and after training."""
        settings = self.job.config.guards.forgetting
        if settings is None:
            return 0.0
        asked = sum(ability.rows for ability in abilities(self.job.config, self.job.base))
        few, short = self._retention_cost(ROWS[0])
        if short * ROWS[1] / ROWS[0] > ANSWER_SECONDS:
            return 2 * short * asked / max(1, few)
        return 2 * extrapolated((few, short), self._retention_cost(ROWS[1]), asked)

    def _retention_cost(self, limit: int) -> tuple[int, float]:
        """Return rows and seconds of asking the base, with at most ``limit`` rows per retention set."""
        guards = self.job.config.guards
        assert guards.forgetting is not None
        few = guards.forgetting.model_copy(update={"limit": min(limit, guards.forgetting.limit)})
        config = self.job.config.model_copy(update={"guards": guards.model_copy(update={"forgetting": few})})
        started = time.perf_counter()
        base_outputs = BaseOutputs.collect(config, self.job.base)
        return sum(ability.rows for ability, _ in base_outputs.outputs), time.perf_counter() - started


def answering_seconds(predict: Callable[[Sequence[Example]], Iterable[object]], examples: Sequence[Example]) -> float:
    """Return the seconds for all examples, extrapolated from a few of them.

    Two numbers of rows separate the cost per row from what is done once, such as reading shots. The larger number are
    short, medium and long rows; if they may take more than :data:`ANSWER_SECONDS`, a few medium ones show whether the
    time is spent per row. If even two rows take twice as long, they are scaled.
    """

    def cost(rows: Sequence[Example]) -> tuple[int, float]:
        return len(rows), _timed(lambda: list(predict(rows)))

    two = neighbors(examples, ROWS[0], 0.5)
    few = cost(two)
    if few[1] <= _CHECKED:  # the first answers of a model include checks of how it computes
        few = cost(two)
    if few[1] > 2 * ANSWER_SECONDS:
        return few[1] * len(examples) / max(1, len(two))
    parts = [neighbors(examples, ROWS[1], (part + 0.5) / BATCHES) for part in range(BATCHES)]
    if few[1] * BATCHES * ROWS[1] / ROWS[0] <= ANSWER_SECONDS:
        costs = [cost(part) for part in parts]
        mean = statistics.fmean(seconds for _, seconds in costs)
        return extrapolated(few, (costs[0][0], mean), len(examples))
    more = cost(neighbors(examples, 2 * ROWS[0], 0.5))
    if more[1] <= 1.5 * few[1]:  # most of the time is spent once, so that more rows cost little more
        more = cost([row for part in parts for row in part])
    return extrapolated(few, more, len(examples))


def line(pace: Pace) -> tuple[float, float]:
    """Return the seconds per step and per token that explain the steps best, neither below 0 (least squares)."""
    middle, mean = (sum(column) / len(pace) for column in zip(*pace, strict=True))
    width = sum((tokens - middle) ** 2 for tokens, _ in pace)
    slope = sum((tokens - middle) * (seconds - mean) for tokens, seconds in pace) / width if width else 0.0
    a_step = mean - slope * middle
    return (a_step, slope) if slope > 0 and a_step > 0 else (0.0, mean / middle)


def extrapolated(few: tuple[int, float], more: tuple[int, float], count: int) -> float:
    """Return the seconds for ``count`` rows, from ``(rows, seconds)`` of two batch sizes.

    The difference gives the seconds per row, and the rest is spent once. If the difference is not plausible, the larger
    batch is scaled.
    """
    (small, short), (large, long) = few, more
    a_row = (long - short) / max(1, large - small)
    if not 0 < a_row <= long / large:
        a_row = long / large
    return max(0.0, long + a_row * (count - large))


def neighbors(examples: Sequence[Example], count: int, place: float) -> list[Example]:
    """Return at most ``count`` rows of similar length around a place between 0 (the shortest) and 1."""
    ordered = sorted(examples, key=lambda example: len(example.input) + len(example.answer))
    start = max(0, min(round(place * len(ordered) - count / 2), len(ordered) - count))
    return ordered[start : start + count]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def make_plan(job: Job, unscored: int = 0) -> Plan:
    """Return the plan of a job, with nothing measured.

    Args:
        job: The job.
        unscored: Evaluation rows that cannot be scored.

    Raises:
        ConfigError: The job cannot work.
    """
    config, data = job.config, job.data
    _check_base(job.base)
    all_or_problems(
        lambda: choosing_metric(config.guards, job.task),
        lambda: general_text.check(config, job.task.head, job.base),
    )
    replayed = costs.replayed(config.regularize, len(job.features))
    _check_drop_last(config, len(job.features) + replayed)
    sequences = [*job.features, *general_text.stand_ins(replayed)]
    mean = sum(len(item.input_ids) for item in job.features) / max(1, len(job.features))
    plan = planning.build_plan(
        config,
        planning.RowCounts.of(data, job.left_out, unscored),
        planning.SequenceCounts(
            sequences=len(sequences),
            tokens=round(mean * len(sequences)),
            batches=job.micro_batches(sequences),
            padding=buckets.padding_shares(config, sequences),
        ),
        planning.ModelSize(job.base.model.num_parameters(), job.base.family == "encoder-decoder"),
        machine_memory=machine.memory_bytes(),
        baselines=chosen(job.task, config.baselines),
        metric=job.task.metrics[0],
        chosen=job.chosen,
        more_advice=job.task.advice(data.train.examples, mean, partial(_count, job.base)),
    )
    with pinned_kernels(config.speed.kernels) as choices:
        return plan.model_copy(update={"fast_paths": fast_paths(training_device(config.trainer), config, choices)})


def _count(base: Bundle, text: str) -> int:
    return len(text_ids(base, text))


def _check_drop_last(config: Config, rows: int) -> None:
    """Check that an epoch has a batch if incomplete batches are dropped."""
    batch = config.train.batch_size
    if config.trainer.get("dataloader_drop_last") and rows < batch:
        raise ConfigError(
            f"{rows} training sequences, which are no full batch of {batch}, and all others are dropped",
            expected="at least one batch per epoch",
            fix="remove it, or lower train.batch_size",
            field="trainer.dataloader_drop_last",
        )


def _check_base(base: Bundle) -> None:
    """Check that the base has no soft prompt: it would be trained too, but it is not saved."""
    if base.prompt_ids:
        raise ModelError(
            f"{base.info.source!r} is a base with a soft prompt",
            expected="a model whose weights are all that it is",
            fix="train its base, or evaluate it as it is",
            field="model",
        )
