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
from fulltune.training.engine_check import is_sharded
from fulltune.training.engines import Refresh, prepare, refresh, to_train
from fulltune.training.guards.base import Guard, GuardDecision, GuardName
from fulltune.training.guards.divergence import DivergenceGuard
from fulltune.training.guards.overfitting import OverfittingGuard
from fulltune.training.interrupt import StopWhenAsked, stopping_after_a_step
from fulltune.training.methods.base import Method
from fulltune.training.next_tokens import aligned_labels
from fulltune.training.optimizers import state_bytes
from fulltune.training.regularization.costs import advice_on_regularizers
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
        train_seconds: Wall time of the training loop, evaluations included.
        tokens_per_second: Input tokens, padding excluded, per second of training, evaluations excluded.
        steps: Logged steps, in order.
        stopped: The error that ended training early. The weights are those of the last good checkpoint, or of the best
            step if a guard kept it.
        guards: Decisions of guards.
        validation: Metric, steps and values by which :class:`OverfittingGuard` chose the step.
        adapter: The adapter that is stored alongside the model, after it was written.
        warnings: Warnings for the report.
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


def fit(
    bundle: Bundle,
    method: Method,
    features: Sequence[Features],
    valid: Sequence[Features] | None,
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
        valid: Sequences of the evaluation curve, which has a point before the first step and ``train.evaluations``
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
    bundle = method.prepare(bundle)
    if config.regularize.dropout is not None:
        set_dropout(bundle.model, config.regularize.dropout)
    features = method.features(bundle, aligned_labels(bundle, features))
    shown = method.features(bundle, aligned_labels(bundle, valid)) if valid and config.train.evaluations else None
    curve = _by_length(shown) if shown else None
    # These features already contain the tokens that the method inserts, so none are reserved here.
    batches = micro_batches(config.speed.batch_tokens, features, is_encoder_decoder=bundle.family == "encoder-decoder")
    log = StepLog(on_step)
    refreshed = Refresh(bundle.model)
    callbacks = [*_divergence_guard(config.guards.divergence), *([refreshed] if is_sharded() else ()), *callbacks]
    guards = [callback for callback in callbacks if isinstance(callback, Guard)]
    choosing = [guard for guard in guards if isinstance(guard, OverfittingGuard)]
    with _settings_kept(bundle.model), pinned_kernels(config.speed.kernels), fast_kernels(bundle.model):
        choices = choices_for(bundle.model)
        trainer = Trainer(
            model=to_train(bundle.model),
            args=training_arguments(config, output_dir, len(features), batches),
            data_collator=Collator(int(bundle.tokenizer.pad_token_id or 0), packed=packs(bundle.model, config)),
            train_dataset=FeatureDataset(features),
            eval_dataset=FeatureDataset(curve) if curve else None,
            class_weights=class_weights,
            r_drop=config.regularize.r_drop,
            layer_decay=config.regularize.layer_decay,
            regularizers=regularize(bundle),
            trained_only=not method.trains_all,
            batch_tokens=config.speed.batch_tokens,
            unpad=unpads(config, training_device(config.trainer)),
            callbacks=[
                EvaluateAt(config.train.evaluations if curve else 0),
                log,
                *method.callbacks(),
                *callbacks,
                *([] if checkpoints is None else [SaveEvery(checkpoints.every)]),
                GiveBackPages(),  # after the guards, whose evaluations fragment the heap too
            ],
        )
        trainer.remove_callback(PrinterCallback)
        prepare(trainer)
        refreshed.attach(trainer)
        for guard in choosing:
            guard.attach(bundle.model, keeps_file=checkpoints is not None)
        trainer.args.eval_on_start = bool(curve)
        with _stoppable(trainer, checkpoints):
            machine.reset_peak_rss()
            seconds, stopped = _train(trainer, resume)
            peak = machine.peak_rss_since_reset()
        if stopped is not None:
            refresh(bundle.model, trainer)
        for guard in choosing:
            guard.finish(bundle.model, trainer.state.global_step)
        bundle.model.zero_grad(set_to_none=True)
    last = trainer.state.global_step
    # A training that was stopped was rolled back: steps logged after that are not those of its weights.
    steps = [step for step in log.steps if step.step <= last]
    tokens = trainer.state.num_input_tokens_seen - log.tokens_before
    guard_seconds = sum(guard.seconds for guard in guards)
    decisions = [event for guard in guards for event in guard.events] + trainer._fulltune.micro_batches.events
    return TrainingResult(
        training=_training_record(
            trainer, bundle, config, steps=steps, rows=len(features), peak_bytes=peak, choices=choices
        ),
        parameters=method.proof(bundle),
        train_seconds=seconds + log.seconds_before,
        tokens_per_second=tokens / (seconds - log.evaluation_seconds - guard_seconds),
        steps=tuple(steps),
        stopped=stopped,
        guards=tuple(decision.record() for decision in _with_reason(decisions, stopped, last)),
        validation=_validation(choosing),
    )


def _by_length(features: Sequence[Features]) -> list[Features]:
    """Sort features by length, which reduces padding in evaluations; the loss does not depend on the order."""
    return sorted(features, key=lambda item: len(item.input_ids))


def _validation(guards: Sequence[OverfittingGuard]) -> dict[str, Any]:
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
    checkpoints = trainer._fulltune.checkpoints
    checkpoints.plan(settings.keep)
    stop = StopWhenAsked(checkpoints.wait)
    trainer.add_callback(stop)
    with stopping_after_a_step(stop):
        yield


def _train(trainer: Trainer, resume: Path | None) -> tuple[float, TrainingStopped | None]:
    started = time.perf_counter()
    stopped = None
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except TrainingStopped as error:
        stopped = error
    return time.perf_counter() - started, stopped


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
        padding=round(trainer._fulltune.padding.fraction, 4),
        packed=getattr(trainer.data_collator, "packed", False),
        fast_paths=fast_paths(args.device.type, config, choices),
        advice=_advice(config, state.max_steps, bundle.model.num_parameters()),
    )


def _advice(config: Config, steps: int, parameters: int) -> tuple[str, ...]:
    return (
        *advice(config, steps, parameters),
        *advice_on_choice(config),
        *advice_on_regularizers(config, parameters),
    )
