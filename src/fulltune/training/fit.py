"""Train a bundle: features in, tuned weights and a description of the training out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from fulltune.config import CheckpointConfig, Config, DivergenceConfig
from fulltune.errors import DataError, DivergenceError, MemoryExhausted, TrainingStopped
from fulltune.models.bundle import Bundle
from fulltune.models.fast_kernels import choices_for, fast_kernels
from fulltune.records.run import AdapterInfo, GuardEvent, Parameters, Step, Training
from fulltune.runtime import distributed, machine
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.runtime.kernels.allocator import keep_freed_pages
from fulltune.runtime.kernels.products import Choices
from fulltune.tasks.base import Features
from fulltune.training.advice import advice, advice_on_choice
from fulltune.training.arguments import checkpointing_name, training_arguments
from fulltune.training.batches.buckets import micro_batches
from fulltune.training.batches.collate import Collator, FeatureDataset
from fulltune.training.batches.packing import packs
from fulltune.training.callbacks import EvaluateAt, GiveBackPages, OnStep, SaveEvery, StepLog
from fulltune.training.device import fast_paths, training_device, unpads
from fulltune.training.engine_check import is_sharded_launch
from fulltune.training.engines import Refresh, prepare, refresh, to_train
from fulltune.training.guards.base import Guard, GuardDecision, GuardName
from fulltune.training.guards.divergence import DivergenceGuard
from fulltune.training.guards.overfitting import OverfittingGuard
from fulltune.training.interrupt import StopWhenAsked, stopping_after_a_step
from fulltune.training.methods.base import Method
from fulltune.training.next_tokens import aligned_labels
from fulltune.training.optimizers import state_bytes
from fulltune.training.parts import parts_of
from fulltune.training.regularization import costs
from fulltune.training.regularization.dropout import set_dropout
from fulltune.training.regularization.penalties import Regularizer
from fulltune.training.trainer import Trainer

#: Guards that are responsible for an error, by its type; any other error is one of numbers that are not finite.
_GUARD_OF: dict[type[TrainingStopped], GuardName] = {DivergenceError: "divergence", MemoryExhausted: "memory"}


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Attributes:
        training: Settings that were in effect.
        parameters: Proof of what the method trained.
        train_seconds: Wall time of the training loop, evaluations and the part before a resume included.
        tokens_per_second: Input tokens, padding excluded, per second of training, evaluations excluded.
        steps: Logged steps, in order.
        stopped: The error that ended training early. The weights are those of the last good checkpoint, or of the best
            step if a guard kept it.
        guards: Decisions of guards.
        validation: Metric, steps and values by which :class:`OverfittingGuard` chose the step.
        adapter: The adapter that is stored alongside the model, after it was written.
        warnings: Warnings for the report.
        seconds_before: Part of ``train_seconds`` before training was resumed.
        reconciled: Properties of the checkpoint that were changed for the trained model alone (its head, for example).
    """

    training: Training
    parameters: Parameters
    train_seconds: float
    tokens_per_second: float
    steps: tuple[Step, ...]
    stopped: TrainingStopped | None = None
    guards: tuple[GuardEvent, ...] = ()
    validation: dict[str, Any] = field(default_factory=dict)
    adapter: AdapterInfo | None = None
    warnings: tuple[str, ...] = ()
    reconciled: tuple[str, ...] = ()
    seconds_before: float = 0.0


def fit(
    bundle: Bundle,
    method: Method,
    features: Sequence[Features],
    curve: Sequence[Features] | None,
    config: Config,
    *,
    output_dir: Path,
    class_weights: Sequence[float] | None = None,
    on_step: OnStep = lambda step, total: None,
    callbacks: Sequence[TrainerCallback] = (),
    regularize: Callable[[Bundle], Sequence[Regularizer]] = lambda bundle: (),
    checkpoints: CheckpointConfig | None = None,
    resume: Path | None = None,
) -> TrainingResult:
    """Train ``bundle.model`` in place.

    The same config, model and features give the same weights, bit for bit, on the same machine.

    Args:
        bundle: The model; it is in eval mode afterwards.
        method: Chooses the trainable parameters.
        features: Training sequences.
        curve: Sequences of the evaluation curve, which has a point before the first step and ``train.evaluations``
            more. There is no curve without sequences or without ``train.evaluations``.
        config: The config of the run.
        output_dir: Folder of trackers and checkpoints, if there are any.
        class_weights: ``(C,)``, for a classification head.
        on_step: Called with each logged step and the total number of steps.
        callbacks: Further callbacks, such as guards.
        regularize: Returns the penalties, given the model that the method prepared.
        checkpoints: Write checkpoints to ``output_dir``. A signal then ends training after its step, with a checkpoint.
        resume: Checkpoint of the same training to resume from; the weights are bit for bit those of an uninterrupted
            training.

    Raises:
        KeyboardInterrupt: After a signal; a checkpoint is written.
        ConfigError: ``config.trainer``, the class weights or a regularizer are invalid.
        DataError: There are no features, or a batch has no label.
        ModelError: The proof of the method fails.
    """
    if not features:
        raise DataError("there is nothing to train on", expected="at least 1 sequence", field="data.train")
    keep_freed_pages()
    rows, points = _prepare(bundle, method, config, features, curve)
    watchers = _Watchers.of(bundle, config, on_step, callbacks)
    with _settings_kept(bundle.model), pinned_kernels(config.speed.kernels), fast_kernels(bundle.model):
        choices = choices_for(bundle.model)
        trainer = _trainer(
            bundle,
            method,
            config,
            rows,
            points,
            output_dir=output_dir,
            class_weights=class_weights,
            regularizers=regularize(bundle),
            callbacks=watchers.in_order(method, config.train.evaluations if points else 0, checkpoints),
        )
        watchers.attach(trainer, keeps_file=checkpoints is not None)
        with _stoppable(trainer, checkpoints):
            ended = _train(trainer, resume)
        watchers.finish(trainer, ended.error)
        bundle.model.zero_grad(set_to_none=True)
    # A training that was stopped was rolled back: steps logged after that are not those of its weights.
    steps = [step for step in watchers.log.steps if step.step <= trainer.state.global_step]
    return TrainingResult(
        training=_training_record(
            trainer, bundle, config, steps=steps, rows=len(rows), peak_bytes=ended.peak_bytes, choices=choices
        ),
        parameters=method.proof(bundle),
        train_seconds=ended.seconds + watchers.log.seconds_before,
        tokens_per_second=watchers.tokens_per_second(trainer, ended.seconds),
        steps=tuple(steps),
        stopped=ended.error,
        guards=watchers.events(trainer, ended.error),
        validation=_validation(watchers.choosing),
        seconds_before=watchers.log.seconds_before,
    )


def _prepare(
    bundle: Bundle, method: Method, config: Config, features: Sequence[Features], curve: Sequence[Features] | None
) -> tuple[Sequence[Features], Sequence[Features]]:
    """Prepare a model in place; return the sequences of training and of the curve as it reads them."""
    method.prepare(bundle)
    if config.regularize.dropout is not None:
        set_dropout(bundle.model, config.regularize.dropout)
    rows = method.features(bundle, aligned_labels(bundle, features))
    if not curve or not config.train.evaluations:
        return rows, []
    points = method.features(bundle, aligned_labels(bundle, curve))
    # Sorting reduces padding in evaluations; the loss does not depend on the order.
    return rows, sorted(points, key=lambda item: len(item.input_ids))


@dataclass(frozen=True)
class _Watchers:
    """The callbacks that are asked for their results after a training.

    Attributes:
        model: The unsharded model.
        log: Collects the logged steps.
        refreshed: Copies the weights of a sharded engine into the model.
        callbacks: The guards, and all callbacks of the caller.
    """

    model: Any
    log: StepLog
    refreshed: Refresh
    callbacks: Sequence[TrainerCallback]

    @classmethod
    def of(cls, bundle: Bundle, config: Config, on_step: OnStep, callbacks: Sequence[TrainerCallback]) -> _Watchers:
        refreshed = Refresh(bundle.model)
        divergence = _divergence_guard(config.guards.divergence)
        watching = [*divergence, *([refreshed] if is_sharded_launch() else ()), *callbacks]
        return cls(bundle.model, StepLog(on_step), refreshed, watching)

    @property
    def guards(self) -> list[Guard]:
        return [callback for callback in self.callbacks if isinstance(callback, Guard)]

    @property
    def choosing(self) -> list[OverfittingGuard]:
        """The guards that choose the best step."""
        return [guard for guard in self.guards if isinstance(guard, OverfittingGuard)]

    def in_order(self, method: Method, evaluations: int, checkpoints: CheckpointConfig | None) -> list[TrainerCallback]:
        """Return all callbacks of a training in the order in which they are called."""
        return [
            EvaluateAt(evaluations),
            self.log,
            *method.callbacks(),
            *self.callbacks,
            *([] if checkpoints is None else [SaveEvery(checkpoints.every)]),
            GiveBackPages(),  # after the guards, whose evaluations fragment the heap too
        ]

    def attach(self, trainer: Trainer, *, keeps_file: bool) -> None:
        """Connect the callbacks with the trainer, which exists only after them, and with the unsharded model."""
        self.refreshed.attach(trainer)
        for guard in self.choosing:
            guard.attach(self.model, keeps_file=keeps_file)

    def finish(self, trainer: Trainer, error: TrainingStopped | None) -> None:
        """Give the model the weights of the best step, or those that training was rolled back to."""
        if error is not None:
            refresh(self.model, trainer)
        for guard in self.choosing:
            guard.finish(self.model, trainer.state.global_step)

    def tokens_per_second(self, trainer: Trainer, seconds: float) -> float:
        """Return the tokens per second of this training, without what came before it and what evaluations take."""
        tokens = trainer.state.num_input_tokens_seen - self.log.tokens_before
        return tokens / (seconds - self.log.evaluation_seconds - sum(guard.seconds for guard in self.guards))

    def events(self, trainer: Trainer, error: TrainingStopped | None) -> tuple[GuardEvent, ...]:
        """Return what the guards decided, with lacks of memory, and the reason why training was stopped."""
        decisions = [event for guard in self.guards for event in guard.events]
        decisions += parts_of(trainer).step.micro_batches.events
        return tuple(one.record() for one in _with_reason(decisions, error, trainer.state.global_step))


def _trainer(
    bundle: Bundle,
    method: Method,
    config: Config,
    rows: Sequence[Features],
    points: Sequence[Features],
    *,
    output_dir: Path,
    class_weights: Sequence[float] | None,
    regularizers: Sequence[Regularizer],
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    """Build the trainer of a prepared model.

    Args:
        bundle: The model.
        method: The method that prepared it.
        config: The config of the run.
        rows: Training sequences, as the prepared model reads them.
        points: Sequences of the evaluation curve; none for no curve.
        output_dir, class_weights: As in :func:`fit`.
        regularizers: Penalties.
        callbacks: All callbacks, in their order.
    """
    # These sequences already contain the tokens that the method inserts, so none are reserved here.
    batches = micro_batches(config.speed.batch_tokens, rows, is_encoder_decoder=bundle.family == "encoder-decoder")
    trainer = Trainer(
        model=to_train(bundle.model),
        args=training_arguments(config, output_dir, len(rows), batches),
        data_collator=Collator(int(bundle.tokenizer.pad_token_id or 0), packed=packs(bundle.model, config)),
        train_dataset=FeatureDataset(rows),
        eval_dataset=FeatureDataset(points) if points else None,
        class_weights=class_weights,
        r_drop=config.regularize.r_drop,
        layer_decay=config.regularize.layer_decay,
        regularizers=regularizers,
        trained_only=not method.trains_all,
        batch_tokens=config.speed.batch_tokens,
        unpad=unpads(config, training_device(config.trainer)),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.args.eval_on_start = bool(points)
    prepare(trainer)
    return trainer


def _validation(guards: Sequence[OverfittingGuard]) -> dict[str, Any]:
    """Return the metric and the points by which the best step was chosen; empty without such a guard."""
    return {"metric": guards[0].metric, "points": [list(point) for point in guards[0].history]} if guards else {}


def _with_reason(
    decisions: Sequence[GuardDecision], stopped: TrainingStopped | None, step: int
) -> Sequence[GuardDecision]:
    """Return the decisions, with one for the error that ended training unless the guard has recorded it itself."""
    is_recorded = any(one.guard == "divergence" and one.stops for one in decisions)
    if stopped is None or is_recorded:
        return decisions
    guard = _GUARD_OF.get(type(stopped), "finite")
    return [GuardDecision(guard, step, "stop", str(stopped)), *decisions]


def _divergence_guard(settings: DivergenceConfig | None) -> list[DivergenceGuard]:
    return [] if settings is None else [DivergenceGuard(**settings.model_dump())]


@contextmanager
def _stoppable(trainer: Trainer, settings: CheckpointConfig | None) -> Iterator[None]:
    """Let a signal end training after its step if checkpoints are written; without checkpoints, it ends it at once."""
    if settings is None:
        yield
        return
    checkpoints = parts_of(trainer).checkpoints
    checkpoints.plan(settings.keep)
    stop = StopWhenAsked(checkpoints.wait)
    trainer.add_callback(stop)
    with stopping_after_a_step(stop):
        yield


@dataclass(frozen=True)
class _Ended:
    """End of the training loop: wall time, peak memory, and the error that stopped it early, if any."""

    seconds: float
    peak_bytes: int
    error: TrainingStopped | None


def _train(trainer: Trainer, resume: Path | None) -> _Ended:
    """Run the training loop and measure it; an error that stops training is returned."""
    machine.reset_peak_rss()
    started, error = time.perf_counter(), None
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except TrainingStopped as stopped:
        error = stopped
    return _Ended(time.perf_counter() - started, machine.peak_rss_since_reset(), error)


@contextmanager
def _settings_kept(model: Any) -> Iterator[None]:
    """Restore what training changes in a model: the key-value cache, activation checkpointing, and autocast."""
    use_cache = getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        # Accelerate replaces the forward method of a model by one that computes under autocast.
        if model.__dict__.pop("_original_forward", None) is not None:
            model.__dict__.pop("forward", None)
        if use_cache is not None:
            model.config.use_cache = use_cache
        name = checkpointing_name()
        if getattr(model, f"is_{name}"):
            getattr(model, f"{name}_disable")()
        model.eval()


def _training_record(
    trainer: Trainer,
    bundle: Bundle,
    config: Config,
    *,
    steps: Sequence[Step],
    rows: int,
    peak_bytes: int,
    choices: Choices | None,
) -> Training:
    """Return the settings that were in effect, as the trainer has them, and the sizes that were measured."""
    args = trainer.args
    state = trainer.state
    losses = [step.loss for step in steps if step.loss is not None]
    return Training(
        optimizer=str(getattr(args.optim, "value", args.optim)),
        optimizer_bytes=max(distributed.all_gather(state_bytes(trainer.optimizer) if trainer.optimizer else 0)),
        peak_bytes=max(distributed.all_gather(peak_bytes)),
        scheduler=config.train.scheduler,
        learning_rate=args.learning_rate,
        warmup_steps=args.get_warmup_steps(state.max_steps),
        weight_decay=args.weight_decay,
        batch_size=args.train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        processes=args.world_size,
        engine=distributed.engine(),
        epochs=round(state.epoch or 0.0, 4),
        steps=state.global_step,
        seed=args.seed,
        tokens=state.num_input_tokens_seen,
        rows=rows,
        final_loss=losses[-1] if losses else math.nan,
        padding=round(parts_of(trainer).step.padding.fraction, 4),
        packed=getattr(trainer.data_collator, "packed", False),
        fast_paths=fast_paths(args.device.type, config, choices),
        regularization=costs.strengths(config),
        general_text=config.regularize.replay_from if costs.needs_general_text(config.regularize) else "",
        advice=_advice(config, state.max_steps, bundle),
    )


def _advice(config: Config, steps: int, bundle: Bundle) -> tuple[str, ...]:
    """Return advice on the settings of a training of this length and size."""
    parameters = bundle.model.num_parameters()
    return (
        *advice(config, steps, parameters, is_encoder_decoder=bundle.family == "encoder-decoder"),
        *advice_on_choice(config),
        *costs.advice_on_regularizers(config, parameters),
    )
