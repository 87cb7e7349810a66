"""Define ``fulltune.Trainer``: a ``transformers.Trainer`` with a correct loss, exact resume and guards.

It differs from the library in these points:

* The loss is the sum over all tokens (or rows) of the effective batch, divided by their number, so that accumulation
  equals one large batch. Models that the library trains with another loss (that of a router, for example) keep it, and
  micro-batches are weighted by their labels.
* The evaluation loss is the mean negative log-likelihood of the set, whatever the batch size is, without label
  smoothing and class weights. Rows are evaluated in their order.
* A micro-batch that does not fit in memory is computed in parts, with the same result.
* A loss or gradient norm that is not finite stops training before the optimizer step; the error lists the rows.
* With a :class:`~fulltune.training.guards.divergence.DivergenceGuard` among the callbacks, training that diverges is
  rolled back to its last good checkpoint instead, with a lower learning rate.
* Checkpoints have a format of their own, which is written atomically, checked when it is read, and resumed from bit for
  bit (:mod:`~fulltune.training.checkpoints.format`). Checkpoints of the library are read too.
* Columns that are padding only are cut off, and rows that padding would change are computed in groups of equal length.
* The noise of NEFTune is added to both stacks of an encoder-decoder.
* The dataset may be the output of a tokenizer. For a decoder, text without labels is its own labels.

Options of its own, all off by default, add class weights, R-Drop, a learning rate that decays by layer, penalties,
batches by a budget of tokens, and micro-batches in parts of similar length; see :class:`Trainer`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from fulltune.training.batches.buckets import BudgetSampler, lengths_of
from fulltune.training.batches.collate import RowCollator, as_rows, default_collator, with_row_numbers
from fulltune.training.batches.packing import with_token_mask
from fulltune.training.batches.row_errors import errors_of_rows
from fulltune.training.best_metric import check_best_metric
from fulltune.training.checkpoints.format import is_ours, load_weights
from fulltune.training.checkpoints.rollback import RollBack
from fulltune.training.engines import whole_batch
from fulltune.training.guards.divergence import guard_among
from fulltune.training.objective import kind_of
from fulltune.training.old_names import OldNames
from fulltune.training.parts import Parts
from fulltune.training.protocols import is_sharded
from fulltune.training.regularization.neftune import noise_in_both_stacks
from fulltune.training.regularization.penalties import Regularizer
from fulltune.training.row_collator import row_collator


class Trainer(OldNames, transformers.Trainer):
    """Drop-in for :class:`transformers.Trainer`.

    Args:
        args: Arguments of :class:`transformers.Trainer`.
        class_weights: ``(C,)`` weights of the classes of a sequence classifier (of the positive labels, if a row has
            several labels).
        r_drop: Weight α of R-Drop (Liang et al. 2021) for a sequence classifier. Every batch is computed under two
            dropout masks, and α times the symmetric divergence of the two predictions is added to the mean of their
            losses. This follows the code of the authors; in equation 4 of the paper the losses are summed, which is
            twice this with 2α.
        layer_decay: Factor on the learning rate for each layer below the top.
        regularizers: Penalties whose gradients are added once per optimizer step, before clipping.
        trained_only: Write trainable parameters only to checkpoints; resuming needs the same base.
        batch_tokens: Limit of padded tokens per training micro-batch, instead of ``per_device_train_batch_size`` rows.
        unpad: Compute a micro-batch in parts of similar length if its rows differ much in length. The step is the same,
            with less work on a CPU, except that dropout masks differ.
        kwargs: Keyword arguments of :class:`transformers.Trainer`.

    Raises:
        ArgumentError: Class weights or R-Drop for a model without classes, or together with a custom loss; regularizers
            with an engine that shards gradients, or with a ``training_step`` that does not call this one.
        UnknownMetricError: In :meth:`train`, if no evaluation returns ``metric_for_best_model``.
        DataError: An effective batch has no label.
        MemoryExhausted: A single row does not fit in memory.
        NonFiniteError: The loss or the gradient norm is not finite; the weights are those of the last good step.
        TrainingStopped: The guard against divergence has no roll-back left; the weights are those of the last good
            checkpoint.
    """

    def __init__(
        self,
        *args: Any,
        class_weights: Sequence[float] | None = None,
        r_drop: float = 0.0,
        layer_decay: float = 1.0,
        regularizers: Sequence[Regularizer] = (),
        trained_only: bool = False,
        batch_tokens: int | None = None,
        unpad: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs = self._take_old_options(kwargs)
        given = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        super().__init__(*args, **kwargs)
        self._apply_old_options()
        self._fulltune = Parts.of(
            self,
            class_weights=class_weights,
            r_drop=r_drop,
            layer_decay=layer_decay,
            regularizers=regularizers,
            trained_only=trained_only,
            batch_tokens=batch_tokens,
            unpad=unpad,
        )
        if kind_of(self._fulltune.user.model) is not None:
            if given.get("data_collator") is None:
                self.data_collator = default_collator(self.processing_class, self._fulltune.user.model)
            if self.args.label_names is None:
                # The forward method of some heads has no argument for labels (Qwen 3.5), or optional others (LUKE).
                self.label_names = ["labels"]
        if is_sharded(self):  # the engine has not sharded the model yet
            self._fulltune.loss.warn_of_padding()
            self._fulltune.penalties.check_not_sharded()

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, and its outputs if asked for.

        Args:
            model: The model, with its wrappers.
            inputs: The batch.
            return_outputs: Return a pair of loss and outputs.
            num_items_in_batch: Number of labels in the effective batch over all processes, the denominator; None for
                the mean of this batch alone.
        """
        own = self._fulltune
        with errors_of_rows(own.user.model, inputs):
            objective = own.loss.objective(inputs)
            if objective is None:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, outputs = own.loss(model, inputs, objective, count=num_items_in_batch, with_outputs=return_outputs)
            return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        count = self._fulltune.loss.count(batch_samples, device)
        return super()._get_num_items_in_batch(batch_samples, device) if count is None else count

    def call_model_init(self, trial: Any = None) -> Any:
        if "_fulltune" in vars(self):  # the constructor of the library calls this too
            self._fulltune.loss.forget_model()
        return super().call_model_init(trial)

    # ---- Optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new:
            self._fulltune.layer_decay.apply(optimizer, self._fulltune.user.model)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        # The scheduler is created after the optimizer, by whichever method.
        reason = self._fulltune.user.override_reason("create_optimizer", "create_optimizer_and_scheduler")
        self._fulltune.layer_decay.check(self.optimizer if optimizer is None else optimizer, reason)
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- Batches ----

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Sampler[Any]] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        own = self._fulltune
        rows = as_rows(dataset)
        given = self.data_collator
        # The sampler gets the rows with all columns: the column of lengths is not an input of the model.
        sampler = None if sampler_fn is None else lambda _: sampler_fn(rows)
        if isinstance(rows, datasets.Dataset):
            # The library wraps the collator itself for any other type of rows.
            self.data_collator = row_collator(given, given, description, own.user, own.loss)
        try:
            return super()._get_dataloader(rows, description, batch_size, sampler, is_training, dataloader_key)
        finally:
            self.data_collator = given

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> RowCollator:
        own = self._fulltune
        inner = super()._get_collator_with_removed_columns(data_collator, description)
        return row_collator(inner, data_collator, description, own.user, own.loss)

    def _prepare_for_training(self, *args: Any) -> tuple[Any, Any]:
        model, loader = super()._prepare_for_training(*args)  # type: ignore[no-untyped-call]
        # Callbacks get the original loader. The row numbers are removed from a batch in get_batch_samples.
        is_fetched_here = not self._fulltune.user.overrides("get_batch_samples", "_run_epoch")
        return model, with_row_numbers(loader) if is_fetched_here else loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        args = self.args
        budget = self._fulltune.batch_tokens
        if budget is not None:
            lengths = lengths_of(train_dataset, self._fulltune.user.model.config.is_encoder_decoder)
            return BudgetSampler(lengths, budget, args.seed, rank=args.process_index, processes=args.world_size)
        with whole_batch(args):
            sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """Return a sequential sampler: with grouping by length, predictions would be in another order."""
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None
        return SequentialSampler(eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._fulltune.step.begin(batches)
        return batches, self._fulltune.step.checked_count(count)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        self._fulltune.step.count_padding(inputs)
        super()._track_num_input_tokens(with_token_mask(inputs))  # type: ignore[no-untyped-call]

    # ---- A step, whose numbers must be finite ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        step = self._fulltune.step
        loss = step.run(super().training_step, model, inputs, num_items_in_batch)
        mean = step.check_loss(model, loss)
        guard = guard_among(self.callback_handler.callbacks)
        if guard is not None:
            guard.add(mean, step.mean_width(loss, inputs))
        step.end_micro_batch()
        if self.accelerator.sync_gradients:  # the optimizer step follows
            scaler = self.accelerator.scaler
            self._fulltune.penalties.add(self.state.global_step, 1.0 if scaler is None else float(scaler.get_scale()))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self._fulltune.penalties.check(self.state.global_step)
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        # A loss scaler (FP16) detects infinite gradients itself and skips the step on purpose.
        if norm is not None and self.accelerator.scaler is None:
            self._fulltune.step.check_norm(model, float(norm))
        return norm

    # ---- Evaluation ----

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        own = self._fulltune
        own.evaluated.begin()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        loss = own.evaluated.mean()
        changed = own.user.override_reason("prediction_step")
        if loss is not None and not own.user.leaves("the mean of the evaluation loss", changed):
            metrics: Any = output.metrics
            metrics[f"{metric_key_prefix}_loss"] = loss
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        with self._fulltune.loss.without_logits(prediction_loss_only):
            result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)
        self._fulltune.evaluated.end_batch()
        return result

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        # The checkpoint that is resumed was evaluated; an uninterrupted run has no second evaluation of this step.
        if skip_scheduler and self._fulltune.checkpoints.skips_first_evaluation:
            return None
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    # ---- Training ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        **options: Any,
    ) -> TrainOutput:
        own = self._fulltune
        resume_from_checkpoint = self._resume_from(resume_from_checkpoint, options)
        check_best_metric(self.args, self.eval_dataset, self.compute_metrics, own.user)
        own.loop.begin(trial)

        def attempt(source: Path | None) -> TrainOutput:
            if source is not None:
                own.checkpoints.begin_from(source)
            return self._train_once(None if source is None else str(source), trial, ignore_keys_for_eval)

        source = own.checkpoints.source(resume_from_checkpoint)
        guard = guard_among(self.callback_handler.callbacks)
        with own.checkpoints.at_work(source):
            if guard is None or is_sharded(self):
                return attempt(source)
            return RollBack(own.loop, own.checkpoints, guard).train(attempt, source)

    def _train_once(self, *args: Any) -> TrainOutput:
        with self._fulltune.loop.attempt():
            return super().train(*args)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # Here the model is that of model_init for this training, with what the user has replaced in it since.
        self._fulltune.loss.check_settings()
        with noise_in_both_stacks(self._fulltune.user.model, self.args.neftune_noise_alpha):
            output: TrainOutput = super()._inner_training_loop(*args, **kwargs)
            return output

    def _finalize_training(self, *args: Any) -> TrainOutput:
        self._fulltune.checkpoints.wait()  # the library may load the best one
        self._fulltune.loop.scale_loss_of_resumed_training()
        output: TrainOutput = super()._finalize_training(*args)  # type: ignore[no-untyped-call]
        return output

    # ---- Checkpoints: written in the format of fulltune, read in that of transformers too ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        own = self._fulltune
        write = super()._save_checkpoint
        if is_sharded(self):
            own.checkpoints.save(write_shards=lambda: write(model, trial))
        elif own.user.writes_checkpoints(trained_only=own.loop.trained_only):
            write(model, trial)
        else:
            target = own.checkpoints.save()
            if self.args.push_to_hub or own.user.has_callback("on_save", outside=("fulltune",)):
                own.checkpoints.wait()
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(target))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._reads(resume_from_checkpoint):
            load_weights(model or cast("nn.Module", self.model), Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._reads(checkpoint):
            self._fulltune.checkpoints.load_optimizer(Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._reads(checkpoint):
            self._fulltune.checkpoints.load_scaler(Path(checkpoint))
        else:
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and is_ours(Path(checkpoint)):  # of a sharded training too
            self._fulltune.checkpoints.load_random(Path(checkpoint))
        else:
            super()._load_rng_state(checkpoint)

    def _reads(self, checkpoint: str) -> bool:
        """Return True if weights and optimizer are read here, not by the library or the engine that wrote them."""
        return is_ours(Path(checkpoint)) and not is_sharded(self)
