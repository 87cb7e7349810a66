"""One training run: features in, tuned weights and the account of how they came about out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from fulltune.config import CheckpointConfig, Config
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
from fulltune.training.arguments import training_arguments
from fulltune.training.batches.buckets import micro_batches
from fulltune.training.batches.collate import Collator, FeatureDataset
from fulltune.training.batches.packing import packs
from fulltune.training.callbacks import EvaluateAt, GiveBackPages, OnStep, SaveEvery, StepLog
from fulltune.training.device import fast_paths, training_device, unpads
from fulltune.training.engines import Refresh, is_sharded, prepare, refresh, to_train
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


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training run.

    Attributes:
        training: Settings as they came out.
        parameters: What the method proves.
        train_seconds: Wall time of the training loop, its evaluations included.
        tokens_per_second: Input tokens without padding, a second of training without its evaluations.
        steps: Everything that was logged, in order.
        stopped: Why training ended early; the weights are then those of the last good checkpoint, or of the best step
            where a guard kept it.
        guards: What guards said.
        validation: Metric, steps and values that :class:`OverfittingGuard` chose by.
        adapter: What was stored beside the model, once it was.
        warnings: What the reader of the report should know of the result.
        reconciled: Facts of the checkpoint that were settled for the trained model alone (its head, say).
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
        bundle: The model; it is left in eval mode.
        method: What learns.
        features: Training sequences.
        valid: Sequences for the evaluation curve, which has a point before the first step and ``train.evaluations``
            more; None or no ``train.evaluations`` draws none.
        config: The job.
        output_dir: Where trackers and checkpoints go, if ``config.trainer`` asks for any.
        class_weights: ``(C,)``, for a classification head.
        on_step: Called with each logged step and the total of steps.
        callbacks: More of them, e.g. guards.
        regularize: Makes the penalties, given the model as the method prepared it.
        checkpoints: Write some to ``output_dir``; a signal then ends training after its step, with one more.
        resume: A checkpoint of the same training to go on from, bit for bit as if it had not been stopped.

    Raises:
        KeyboardInterrupt: A signal asked for it; a checkpoint is written.
        ConfigError: ``config.trainer``, the class weights or a regularizer do not fit.
        DataError: No features, or a whole batch without a label.
        ModelError: What the method promises does not hold.
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
    batches = micro_batches(config.speed.batch_tokens, features, is_encoder_decoder=bundle.family == "encoder-decoder")
    log, refreshed = StepLog(on_step), Refresh(bundle.model)
    callbacks = [*_divergence_guard(config), *([refreshed] if is_sharded() else ()), *callbacks]
    chosen = [callback for callback in callbacks if isinstance(callback, OverfittingGuard)]
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
                GiveBackPages(),  # after the guards, whose evaluations leave holes too
            ],
        )
        trainer.remove_callback(PrinterCallback)
        prepare(trainer)
        refreshed.trainer = trainer
        for guard in chosen:
            guard.whole, guard.leaves_file = bundle.model, checkpoints is not None
        trainer.args.eval_on_start = bool(curve)
        with _stoppable(trainer, checkpoints):
            machine.reset_peak_rss()
            seconds, stopped = _train(trainer, resume)
            peak = machine.peak_rss_since_reset()
        if stopped is not None:
            refresh(bundle.model, trainer)
        for guard in chosen:
            guard.finish(bundle.model, trainer.state.global_step)
        bundle.model.zero_grad(set_to_none=True)
    # Training that was stopped has gone back: what was logged after that step is none of its weights.
    steps = [step for step in log.steps if step.step <= trainer.state.global_step]
    return TrainingResult(
        training=_account(trainer, bundle, config, steps, len(features), peak, choices),
        parameters=method.proof(bundle),
        train_seconds=seconds + log.seconds_before,
        tokens_per_second=(trainer.state.num_input_tokens_seen - log.tokens_before)
        / (seconds - log.evaluation_seconds - _spent(callbacks)),
        steps=tuple(steps),
        stopped=stopped,
        guards=_events(stopped, [*callbacks, trainer._fulltune.micro_batches], trainer.state.global_step),
        validation=_validation(chosen),
    )


def _by_length(features: Sequence[Features]) -> list[Features]:
    """Rows of like length side by side, so that little of an evaluation is padding; its loss is that of any order."""
    return sorted(features, key=lambda item: len(item.input_ids))


def _spent(callbacks: Sequence[TrainerCallback]) -> float:
    """Seconds that guards took for evaluations of their own."""
    return sum(float(getattr(callback, "seconds", 0.0)) for callback in callbacks)


def _validation(guards: Sequence[OverfittingGuard]) -> dict[str, Any]:
    return {"metric": guards[0].metric, "points": [list(point) for point in guards[0].history]} if guards else {}


def _events(stopped: TrainingStopped | None, watching: Sequence[Any], step: int) -> tuple[GuardEvent, ...]:
    """What guards said, and why training was stopped where none of them told it."""
    said = [event for one in watching for event in getattr(one, "events", ())]
    if stopped is None or any(event.guard == "divergence" and event.verdict == "stop" for event in said):
        return tuple(said)
    kinds = {DivergenceError: "divergence", MemoryExhausted: "memory"}
    guard = kinds.get(type(stopped), "finite")
    return (GuardEvent(guard=guard, step=step, verdict="stop", message=str(stopped)), *said)


def _divergence_guard(config: Config) -> list[DivergenceGuard]:
    settings = config.guards.divergence
    return [] if settings is None else [DivergenceGuard(**settings.model_dump())]


@contextmanager
def _stoppable(trainer: Trainer, settings: CheckpointConfig | None) -> Iterator[None]:
    """With checkpoints a signal ends training after its step; without any it ends it as it always did."""
    if settings is None:
        yield
        return
    trainer._fulltune.checkpoints.keep, trainer._fulltune.checkpoints.are_planned = settings.keep, True
    stop = StopWhenAsked(trainer._fulltune.checkpoints.wait)
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
    """Training turns the key-value cache off, recomputation on, and bfloat16 on; none of it should outlive it."""
    use_cache = getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        if model.__dict__.pop("_original_forward", None) is not None:  # Accelerate's, which computes under autocast
            model.__dict__.pop("forward", None)
        if use_cache is not None:
            model.config.use_cache = use_cache
        if model.is_activation_checkpointing:
            model.activation_checkpointing_disable()
        model.eval()


def _account(
    trainer: Trainer,
    bundle: Bundle,
    config: Config,
    steps: Sequence[Step],
    rows: int,
    peak: int,
    choices: Choices | None,
) -> Training:
    args, state = trainer.args, trainer.state
    losses = [step.loss for step in steps if step.loss is not None]
    return Training(
        optimizer=str(getattr(args.optim, "value", args.optim)),
        optimizer_bytes=max(distributed.all_gather(state_bytes(trainer.optimizer) if trainer.optimizer else 0)),
        peak_bytes=max(distributed.all_gather(peak)),
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
        padding=round(trainer._fulltune.padding.share, 4),
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
