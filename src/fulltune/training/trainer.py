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
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, cast

import datasets
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import DataCollatorForLanguageModeling, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, TrainOutput, has_length

from fulltune.errors import (
    ArgumentError,
    DataError,
    NonFiniteError,
    Problem,
    UnknownMetricError,
    did_you_mean,
)
from fulltune.models.fast_paths import SHORTEST
from fulltune.models.head_loss import LossAtHead
from fulltune.runtime.log_once import log_once
from fulltune.training.batches.buckets import BudgetSampler, lengths_of
from fulltune.training.batches.collate import (
    Collator,
    FeatureDataset,
    RowCollator,
    as_rows,
    take_row_numbers,
    with_row_numbers,
)
from fulltune.training.batches.packing import with_token_mask
from fulltune.training.batches.row_errors import errors_of_rows
from fulltune.training.batches.row_groups import Computed, joined, longest_row, part_of, row_groups, warn_of_padding
from fulltune.training.batches.unpadding import unpadded
from fulltune.training.checkpoints.format import is_ours, load_weights
from fulltune.training.checkpoints.manager import Checkpoints
from fulltune.training.checkpoints.rollback import RollBack
from fulltune.training.engines import whole_batch
from fulltune.training.guards.divergence import DivergenceGuard, batch_width
from fulltune.training.loop import LoopAdapter
from fulltune.training.loss_check import LossCheck, check_loss, without_labels
from fulltune.training.objective import LabelKind, Objective, checked_class_weights, checked_r_drop, kind_of
from fulltune.training.old_names import OldNames
from fulltune.training.own_state import OwnState
from fulltune.training.regularization.neftune import noise_in_both_stacks
from fulltune.training.regularization.penalties import Regularizer, decay_by_layer
from fulltune.training.untouched import (
    accepts_any_width,
    changed_in_model,
    has_only_tokens,
    hooked,
    overridden,
    pads_freely,
)

_log = logging.getLogger(__name__)

#: Methods that write checkpoints.
_WRITERS = (
    "save_model",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "_save_rng_state",
    "_save_scaler",
)


#: Methods that process a training batch before the loss is computed. If one is overridden, batches are left unchanged.
_TRAINING = ("training_step", "_prepare_inputs", "get_batch_samples", "_run_epoch", "_inner_training_loop")

#: The same for batches of an evaluation.
_EVALUATION = ("prediction_step", "_prepare_inputs", "evaluation_loop")


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
        ArgumentError: Class weights or R-Drop for a model without classes, or together with a custom loss.
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
        # Set first: the constructor of the library calls methods that read it.
        self._fulltune = OwnState(
            r_drop=r_drop,
            layer_decay=layer_decay,
            regularizers=regularizers,
            trained_only=trained_only,
            batch_tokens=batch_tokens,
            unpad=unpad,
        )
        given = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        super().__init__(*args, **kwargs)
        self._apply_old_options()
        if given.get("data_collator") is None and kind_of(self._plain_model()) is not None:
            side = getattr(self.processing_class, "padding_side", "right")
            self.data_collator = Collator(self._pad_token_id(), side=side)
        if self.args.label_names is None and kind_of(self._plain_model()) is not None:
            # The forward method of some heads has no argument for labels (Qwen 3.5), or optional other ones (LUKE).
            self.label_names = ["labels"]
        self._fulltune.loop = LoopAdapter(self, self._fulltune)
        self._fulltune.checkpoints = Checkpoints(self._fulltune.loop)
        self._fulltune.class_weights = checked_class_weights(self._plain_model(), class_weights)
        checked_r_drop(self._plain_model(), r_drop)
        self._check_that_loss_is_ours()
        if self._is_sharded:
            label_kind = self._kind()  # the model is not sharded yet
            if label_kind is not None and self._loss_check(label_kind).is_checked:
                warn_of_padding(self._plain_model(), SHORTEST)

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
        with errors_of_rows(self._plain_model(), inputs):
            return self._loss_of(model, inputs, return_outputs, num_items_in_batch)

    def _loss_of(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> Any:
        """Compute as :meth:`compute_loss`, without naming the rows in errors."""
        objective = self._objective(inputs)
        if objective is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        groups = self._row_groups(inputs, objective)
        parts = [inputs] if groups is None else [part_of(inputs, rows, objective.kind) for rows in groups]
        computed = joined([self._computed(model, part, objective, return_outputs) for part in parts], groups or [])
        self._fulltune.row_losses = computed.row_losses
        if num_items_in_batch is None:
            loss = computed.total / computed.counts.sum()
        else:
            # Distributed data parallelism averages gradients over processes; this denominator spans all of them.
            loss = computed.total / num_items_in_batch * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, _with_loss(computed.outputs, loss)) if return_outputs else loss

    def _computed(self, model: nn.Module, inputs: dict[str, Any], objective: Objective, with_outputs: bool) -> Computed:
        """Compute the summed loss of rows in the way that suits the model, at its head if no outputs are needed."""
        if not self._loss_check(objective.kind).is_cross_entropy:
            return self._from_model(model, inputs, objective)
        at_head = None
        if objective.is_of_tokens and (not with_outputs if model.training else self._fulltune.is_loss_only):
            at_head = self._at_head(model, inputs, objective)
        return at_head or self._from_logits(model, inputs, objective)

    def _from_logits(self, model: nn.Module, inputs: dict[str, Any], objective: Objective) -> Computed:
        """Compute the loss from the logits of the model."""
        labels = inputs["labels"]
        outputs = model(**self._inputs_without_labels(inputs, objective))
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        row_losses = None if model.training else _losses_and_counts(*objective.plain()(logits, labels))
        sums, counts = objective(logits, labels)
        if self._fulltune.r_drop and model.training:
            second = self._second_pass(model, inputs, objective)
            mean = (sums + objective(second, labels)[0]) / 2
            sums = mean + self._fulltune.r_drop * objective.divergence(logits, second, counts)
        return Computed(outputs, sums.sum(), counts, row_losses)

    def _from_model(self, model: nn.Module, inputs: dict[str, Any], objective: Objective) -> Computed:
        """Compute with the loss of the model, a mean, which is multiplied by the number of labels.

        Label smoothing and class weights change the cross-entropy in it, and no other term. Evaluation reports the
        cross-entropy of the logits, as for every other model.
        """
        if self._fulltune.r_drop and model.training:
            raise ArgumentError(
                f"R-Drop for {type(self._plain_model()).__name__}, which computes its own loss",
                expected="a model whose loss is the cross-entropy of its logits",
                fix="leave r_drop out",
                field="r_drop",
            )
        outputs = model(**self._inputs_without_labels(inputs, objective), labels=inputs["labels"])
        if not self._loss_check(objective.kind).is_checked:
            return self._unchecked(outputs, inputs["labels"], objective, model.training)
        own, logits = (outputs["loss"], outputs["logits"]) if isinstance(outputs, dict) else outputs[:2]
        outputs = outputs if isinstance(outputs, dict) else outputs[1:]
        plain, numbers = objective.plain()(logits, inputs["labels"])
        if not model.training:
            return Computed(outputs, plain.sum(), numbers, _losses_and_counts(plain, numbers))
        sums, counts = objective(logits, inputs["labels"])
        count = counts.sum()
        if objective == objective.plain():
            return Computed(outputs, own * count, counts)
        other_terms = own - plain.sum() / numbers.sum().clamp(min=1)
        return Computed(outputs, sums.sum() + other_terms * count, counts)

    def _unchecked(self, outputs: Any, labels: Tensor, objective: Objective, is_training: bool) -> Computed:
        """Compute with the loss of the model in training and in evaluation, if nothing is known of its logits."""
        own, rest = (outputs["loss"], outputs) if isinstance(outputs, dict) else (outputs[0], outputs[1:])
        count = objective.plain().count(labels).to(own.device)
        return Computed(rest, own * count, count, None if is_training else _losses_and_counts(own * count, count)[None])

    def _at_head(self, model: nn.Module, inputs: dict[str, Any], objective: Objective) -> Computed | None:
        """Compute the loss at the head, without logits; None if that is not possible or not faster.

        In evaluation this is the plain likelihood.
        """
        at_head = self._fulltune.loss_at_head or LossAtHead.of(self, self._plain_model())
        self._fulltune.loss_at_head = at_head
        head = at_head.head
        if head is not None and self._defers_to_library("computing the loss in the head", hooked((head,))):
            return None
        smoothing = objective.smoothing if model.training else 0.0
        labels = objective.aligned(inputs["labels"])
        run = at_head.run(model, self._inputs_without_labels(inputs, objective), labels, smoothing)
        if run is None:
            return None
        outputs, losses = run
        row_losses = None if model.training else _losses_and_counts(losses.losses.sum(dim=1), losses.counts)
        return Computed(outputs, losses.total, losses.counts, row_losses)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        objectives = [self._objective(batch) for batch in batch_samples]
        known = [objective for objective in objectives if objective is not None]
        if not known or len(known) < len(objectives):
            return super()._get_num_items_in_batch(batch_samples, device)
        counts = [one.count(batch["labels"]).to(device) for one, batch in zip(known, batch_samples, strict=True)]
        count = torch.stack(counts).sum()
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum() / self.get_tp_size()
        return count

    def _objective(self, inputs: Any) -> Objective | None:
        """Return the loss to compute, or None if that of the library or the user must be used."""
        if "shift_labels" in inputs or self._defers_to_library("the loss", self._foreign_loss_reason()):
            return None
        labels = inputs.get("labels")
        promised = kind_of(self._plain_model(), labels) if isinstance(labels, Tensor) else None
        label_kind = None if promised is None else self._loss_check(promised).kind
        smoothing = self.args.label_smoothing_factor
        return None if label_kind is None else Objective(label_kind, smoothing, self._fulltune.class_weights)

    def _foreign_loss_reason(self) -> str | None:
        """Return the reason why the loss is not computed here, or None."""
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            return "sequences are split over processes"
        return "use_liger_kernel is set" if self.args.use_liger_kernel else self._replaced_loss_reason()

    def _replaced_loss_reason(self) -> str | None:
        """Return which part of the loss computation the user has replaced, or None."""
        if self._overrides("compute_loss"):
            return "compute_loss is overridden"
        if self.compute_loss_func is not None:
            return "compute_loss_func is given"
        return changed_in_model(self._plain_model()) or self._hook()

    def _hook(self) -> str | None:
        """Return which wrapper of the model, or the model itself, has a hook of the user, or None."""
        return hooked((*self._wrappers(), self._plain_model()))

    def _loss_is_replaced(self) -> bool:
        """Return True if the library computes the loss because the user has replaced a part of it; log why."""
        return self._defers_to_library("the loss", self._replaced_loss_reason())

    def _defers_to_library(self, what: str, reason: str | None) -> bool:
        """Return True if there is a reason to leave a feature to the library; log it once."""
        if reason is not None:
            log_once(_log, logging.INFO, (what, reason), "left to transformers: %s (%s)", what, reason)
        return reason is not None

    def _overrides(self, *names: str) -> list[str]:
        """Return which of these methods a subclass or the instance overrides."""
        ours = next(one for one in type(self).__mro__ if one.__module__.startswith("fulltune.training."))
        return overridden(self, ours, names)

    def _override_reason(self, *names: str) -> str | None:
        """Return which of these methods are overridden, as a reason, or None."""
        changed = self._overrides(*names)
        return f"{' and '.join(changed)} {'is' if len(changed) == 1 else 'are'} overridden" if changed else None

    def _check_that_loss_is_ours(self) -> None:
        """Check that settings of the loss are not ignored because another loss is computed."""
        own = self._fulltune
        reason = self._foreign_loss_reason()
        wanted = {"class_weights": own.class_weights is not None, "r_drop": bool(own.r_drop)}
        problems = [
            Problem(
                f"{name} is set, and {reason}",
                expected="the loss of fulltune.Trainer, the only one that uses it",
                fix=f"leave {name} out, and implement it in your loss",
                field=name,
            )
            for name, is_set in wanted.items()
            if is_set and reason is not None
        ]
        if problems:
            raise ArgumentError(problems)

    def _loss_check(self, label_kind: LabelKind) -> LossCheck:
        """Check the loss of the model, once per kind of labels."""
        model = self._plain_model()
        if self._fulltune.loss_checks_of is not model and not (self._fulltune.loss_checks and self._is_sharded):
            self._fulltune.forget_model()
            self._fulltune.loss_checks_of = model
        if label_kind not in self._fulltune.loss_checks:
            checked = check_loss(model, label_kind)
            self._fulltune.loss_checks |= {label_kind: checked, checked.kind: checked}
        return self._fulltune.loss_checks[label_kind]

    def _kind(self) -> LabelKind | None:
        """Return the kind of labels as far as it is known without labels, or None."""
        promised = kind_of(self._plain_model())
        return None if promised is None else self._loss_check(promised).kind

    def _row_groups(self, inputs: dict[str, Any], objective: Objective) -> list[list[int]] | None:
        """Return the groups of rows that are computed together, or None for the unchanged batch.

        The batch is unchanged with several processes, which must all run the same number of passes (a warning is logged
        if this changes the loss), and for a model whose loss cannot be checked.
        """
        if not self._loss_check(objective.kind).is_checked or self._is_sharded:
            return None
        if self.args.world_size > 1:
            warn_of_padding(self._plain_model(), longest_row(inputs))
            return None
        if not self._can_be_cut(inputs):
            return None
        return row_groups(self._plain_model(), inputs, objective.kind)

    def _can_be_cut(self, inputs: dict[str, Any]) -> bool:
        """Return True if padding columns can be removed without changing what the model computes."""
        model: Any = self._plain_model()
        reason = self._override_reason(*(_TRAINING if model.training else _EVALUATION))
        # Rows of a run are not padded by anybody else, so they may be computed alone; a script may pad on purpose.
        is_run = isinstance(self.train_dataset, FeatureDataset)
        if reason is None and not is_run and not accepts_any_width(model):
            reason = f"{type(model).__name__} depends on the width of a batch"
        if reason is None and not has_only_tokens(inputs):
            reason = "the inputs are not text alone"
        if reason is None and not is_run:
            reason = hooked(model.modules())
        return not self._defers_to_library("computing rows of a batch in groups", reason)

    def _second_pass(self, model: nn.Module, inputs: dict[str, Any], objective: Objective) -> Tensor:
        """Return the logits of a second pass, under another dropout mask."""
        outputs = model(**self._inputs_without_labels(inputs, objective))
        logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        return logits

    def _inputs_without_labels(self, inputs: dict[str, Any], objective: Objective) -> dict[str, Any]:
        return without_labels(self._plain_model(), inputs, objective.kind)

    def _wrappers(self) -> tuple[Any, ...]:
        """Return the model as it is given, and that of PEFT in it."""
        model: Any = self.model
        return (model, model.base_model) if hasattr(model, "get_base_model") else (model,)

    def _plain_model(self) -> Any:
        """Return the model without the wrappers of Accelerate and PEFT."""
        wrapped, plain = self._fulltune.unwrapped
        if wrapped is not self.model or plain is None:
            plain = self.accelerator.unwrap_model(self.model)
            plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
            self._fulltune.unwrapped = (self.model, plain)
        return plain

    def call_model_init(self, trial: Any = None) -> Any:
        self._fulltune.forget_model()
        return super().call_model_init(trial)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self._fulltune.layer_decay < 1:
            decay_by_layer(optimizer, self._plain_model(), self._fulltune.layer_decay)
            self._fulltune.decayed = optimizer
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        # The scheduler is created after the optimizer, by whichever method.
        self._check_layer_decay(self.optimizer if optimizer is None else optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    def _check_layer_decay(self, optimizer: Any) -> None:
        """Check that the optimizer is the one whose learning rates were set by layer."""
        own = self._fulltune
        plain = getattr(optimizer, "optimizer", optimizer)  # without the wrapper of Accelerate
        if own.layer_decay == 1 or plain is getattr(own.decayed, "optimizer", own.decayed):
            return
        reason = self._override_reason("create_optimizer", "create_optimizer_and_scheduler") or "an optimizer is given"
        raise ArgumentError(
            f"layer_decay is set, and {reason}",
            expected="the optimizer of fulltune.Trainer, the only one that uses it",
            fix="call super().create_optimizer(), or leave layer_decay out and set the rates of your parameter groups",
            field="layer_decay",
        )

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
        rows = as_rows(dataset)
        given = self.data_collator
        # The sampler gets the rows with all columns: the column of lengths is not an input of the model.
        sampler = None if sampler_fn is None else lambda _: sampler_fn(rows)
        if isinstance(rows, datasets.Dataset):
            # The library wraps the collator itself for any other type of rows.
            self.data_collator = self._row_collator(given, given, description)
        try:
            return super()._get_dataloader(rows, description, batch_size, sampler, is_training, dataloader_key)
        finally:
            self.data_collator = given

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> RowCollator:
        inner = super()._get_collator_with_removed_columns(data_collator, description)
        return self._row_collator(inner, data_collator, description)

    def _row_collator(self, inner: Any, given: Any, description: str | None) -> RowCollator:
        is_ours = not self._loss_is_replaced()
        # A hook does not change what the labels of a text are.
        has_kind = is_ours or self._replaced_loss_reason() == self._hook()
        return RowCollator(
            collate=inner,
            kind=self._kind() if has_kind else None,
            trim=is_ours
            and not self._defers_to_library("cutting columns of padding", self._padding_of_user(given, description)),
            relabel=type(given) is DataCollatorForLanguageModeling and not given.mlm,
        )

    def _padding_of_user(self, collator: Any, description: str | None) -> str | None:
        """Return the reason why the width of a batch is not changed, or None."""
        if description not in ("Training", "Evaluation"):
            return f"the loader {description!r} belongs to the caller"
        if not isinstance(collator, Collator) and not pads_freely(collator):
            return f"{getattr(collator, '__name__', type(collator).__name__)} decides on the padding"
        if not accepts_any_width(self._plain_model()):
            return f"{type(self._plain_model()).__name__} depends on the width of a batch"
        if description == "Evaluation" and (self.compute_metrics or self.preprocess_logits_for_metrics):
            return "compute_metrics gets the predictions"
        if (reason := hooked(self._plain_model().modules())) is not None:
            return reason
        return self._override_reason(*(_TRAINING if description == "Training" else _EVALUATION))

    def _prepare_for_training(self, *args: Any) -> tuple[Any, Any]:
        model, loader = super()._prepare_for_training(*args)  # type: ignore[no-untyped-call]
        # Callbacks get the original loader. The row numbers are removed from a batch in get_batch_samples.
        is_fetched_here = not self._overrides("get_batch_samples", "_run_epoch")
        return model, with_row_numbers(loader) if is_fetched_here else loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        if self._fulltune.batch_tokens is not None:
            lengths = lengths_of(train_dataset, self._plain_model().config.is_encoder_decoder)
            return BudgetSampler(
                lengths,
                self._fulltune.batch_tokens,
                self.args.seed,
                rank=self.args.process_index,
                processes=self.args.world_size,
            )
        with whole_batch(self.args):
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
        self._fulltune.row_numbers = [take_row_numbers(batch) for batch in batches]
        self._fulltune.micro_batch = 0
        self._fulltune.micro_batches.begin(batches)
        if count is not None and float(torch.as_tensor(count).sum()) == 0 and not self._loss_is_replaced():
            if getattr(self.data_collator, "mlm", False):
                return batches, torch.ones_like(torch.as_tensor(count))  # no token was masked by chance: no gradient
            raise DataError(
                f"no position of this batch has a label (step {self.state.global_step + 1}, "
                f"rows {', '.join(self._row_ids()) or 'unknown'})",
                expected="at least one label that is not -100",
                fix="increase the maximum length so that labels are not cut off, or remove those rows",
            )
        return batches, count

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        for part in self._parts(inputs):
            self._fulltune.padding.add(with_token_mask(part))
        super()._track_num_input_tokens(with_token_mask(inputs))  # type: ignore[no-untyped-call]

    def _parts(self, batch: Any) -> Sequence[Any]:
        """Return the parts in which a micro-batch is computed for speed."""
        may_split = self._fulltune.unpad and self.args.world_size == 1
        objective = self._objective(batch) if may_split else None
        if objective is None or not self._loss_check(objective.kind).is_cross_entropy or not self._can_be_cut(batch):
            return [batch]
        return unpadded(batch, objective.kind) if self._row_groups(batch, objective) is None else [batch]

    def _row_ids(self, micro_batch: int | None = None) -> list[str]:
        """Return the ids of the rows of a micro-batch, or of the step: ``row_id``, or the number of the row."""
        known = self._fulltune.row_numbers
        chosen = known if micro_batch is None else known[micro_batch : micro_batch + 1]
        rows = as_rows(self.train_dataset)
        items = [(number, rows[number]) for numbers in chosen for number in numbers]
        return [str(item.get("row_id", number) if hasattr(item, "get") else number) for number, item in items]

    def _pad_token_id(self) -> int:
        """Return the id for padding. Without one any id can be used, because the attention mask hides it."""
        known = [getattr(one, "pad_token_id", None) for one in (self.processing_class, self._plain_model().config)]
        return next((int(value) for value in known if value is not None), 0)

    # ---- Finite numbers ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        loss = self._computed_step(super().training_step, model, inputs, num_items_in_batch)
        everywhere = self._everywhere(loss)
        broken = everywhere[~torch.isfinite(everywhere)]
        if broken.numel():
            # Only the process itself knows its rows.
            rows = [] if torch.isfinite(loss) else self._row_ids(self._fulltune.micro_batch)
            self._stop(model, "loss", broken[0].item(), rows)
        guard = self._guard()
        if guard is not None:
            width = self._everywhere(loss.new_tensor(batch_width(inputs), dtype=torch.float32))
            guard.add(float(everywhere.mean()), float(width.mean()))
        self._fulltune.micro_batch += 1
        if self._fulltune.micro_batch == len(self._fulltune.row_numbers):
            for regularizer in self._fulltune.regularizers:
                regularizer.backward(self.state.global_step)
        return loss

    def _everywhere(self, value: Tensor) -> Tensor:
        """Return a number of all processes, ``(P,)``."""
        return (self.accelerator.gather(value) if self.args.world_size > 1 else value).flatten()

    def _computed_step(
        self, plain: Callable[..., Tensor], model: nn.Module, inputs: dict[str, Any], count: Tensor | int | None
    ) -> Tensor:
        """Return the loss of a micro-batch, computed in parts if their result is known to be the same."""
        if self._objective(inputs) is None:
            return plain(model, inputs, count)
        # Without a count the loss is the mean of one micro-batch, which the library divides by their number.
        with nullcontext() if count is None else self._loss_is_scaled():
            if self._defers_to_library(
                "training a batch in parts where memory runs out", self._override_reason(*_TRAINING)
            ):
                return plain(model, inputs, count)
            return self._fulltune.micro_batches.run(
                lambda batch: plain(model, batch, count),
                model,
                inputs,
                step=self.state.global_step + 1,
                adds_up=count is not None and self.args.world_size == 1,
                parts=self._parts if count is not None else lambda batch: (batch,),
            )

    @contextmanager
    def _loss_is_scaled(self) -> Iterator[None]:
        """Prevent the library from dividing the loss by the number of micro-batches; restore the user's setting."""
        known = "loss_is_scaled_for_ga" in vars(self)
        flag = self.loss_is_scaled_for_ga
        self.loss_is_scaled_for_ga = True
        try:
            yield
        finally:
            del self.loss_is_scaled_for_ga
            if known:
                self.loss_is_scaled_for_ga = flag

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        # A loss scaler (FP16) detects infinite gradients itself and skips the step on purpose.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(float(norm)):
            self._stop(model, "gradient norm", float(norm), self._row_ids())
        return norm

    def _stop(self, model: nn.Module, quantity: str, value: float, row_ids: Sequence[str]) -> NoReturn:
        """Raise the error of a number that is not finite, without the gradients that it is part of."""
        model.zero_grad()
        raise NonFiniteError(self.state.global_step + 1, quantity, value, row_ids)

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
        own.evaluated = torch.zeros(2, dtype=torch.float64)
        own.row_losses = None
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        changed = self._override_reason("prediction_step")
        if own.row_losses is not None and not self._defers_to_library("the mean of the evaluation loss", changed):
            total, count = own.evaluated.tolist()
            metrics: Any = output.metrics
            metrics[f"{metric_key_prefix}_loss"] = total / count if count else math.nan
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        self._fulltune.is_loss_only = prediction_loss_only
        try:
            result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)
        finally:
            self._fulltune.is_loss_only = False
        if self._fulltune.row_losses is not None:
            # This drops the rows that distributed sampling repeats to complete its last batch.
            rows = self.accelerator.gather_for_metrics(self._fulltune.row_losses)
            self._fulltune.evaluated += rows.sum(dim=0).cpu()
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
        resume_from_checkpoint = self._resume_from(resume_from_checkpoint, options)
        self._check_best_metric()
        self._fulltune.trial = trial  # the folder of checkpoints depends on it

        def attempt(source: Path | None) -> TrainOutput:
            if source is not None:
                self._fulltune.checkpoints.begin_from(source)
            return self._train_once(None if source is None else str(source), trial, ignore_keys_for_eval)

        checkpoints = self._fulltune.checkpoints
        source = checkpoints.source(resume_from_checkpoint)
        guard = self._guard()
        with checkpoints.at_work(source):
            if guard is None or self._is_sharded:
                return attempt(source)
            return RollBack(self._fulltune.loop, checkpoints, guard).train(attempt, source)

    def _train_once(self, *args: Any) -> TrainOutput:
        self._fulltune.steps_before = 0
        model: Any = self.model
        is_bare = self.model_wrapped is self.model
        if self.args.world_size > 1 and is_bare:
            # An evaluation before training marks the model as prepared. Training would then not wrap it, and every
            # process would use its own gradients.
            model._is_accelerate_prepared = False
        try:
            return super().train(*args)
        finally:
            hook = getattr(self, "neftune_hook_handle", None)
            if self.is_in_train and hook is not None:
                # After an error: the library removes its hook at a normal end only, and would add a second one.
                hook.remove()
            self.is_in_train = False

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # Here the model is that of model_init for this training, with what the user has replaced in it since.
        self._check_that_loss_is_ours()
        with noise_in_both_stacks(self._plain_model(), self.args.neftune_noise_alpha):
            output: TrainOutput = super()._inner_training_loop(*args, **kwargs)
            return output

    @property
    def _is_sharded(self) -> bool:
        """True if an engine shards the model over processes and writes its own checkpoints."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled or self.is_distributed_loading_by_transformers

    # ---- Checkpoints: written in the format of fulltune, read in that of transformers too ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self._is_sharded:
            write = super()._save_checkpoint
            self._fulltune.checkpoints.save(write_shards=lambda: write(model, trial))
            return
        if not self._writes_own_format():
            super()._save_checkpoint(model, trial)
            return
        target = self._fulltune.checkpoints.save()
        if self.args.push_to_hub or self._has_callback("on_save", outside=("fulltune",)):
            self._fulltune.checkpoints.wait()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _writes_own_format(self) -> bool:
        """Return False if a subclass or PEFT decides on the content of checkpoints; log why."""
        reason = self._override_reason(*_WRITERS)
        if reason is None and hasattr(self.accelerator.unwrap_model(self.model), "get_base_model"):
            reason = None if self._fulltune.trained_only else "PEFT saves the adapter only"
        return not self._defers_to_library("writing checkpoints", reason)

    def _has_callback(self, event: str, *, outside: tuple[str, ...]) -> bool:
        """Return True if a callback from outside these packages handles an event."""
        kinds = [type(one) for one in self.callback_handler.callbacks]
        listening = [one for one in kinds if getattr(one, event) is not getattr(TrainerCallback, event)]
        return any(one.__module__.partition(".")[0] not in outside for one in listening)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if is_ours(Path(resume_from_checkpoint)) and not self._is_sharded:
            load_weights(model or cast("nn.Module", self.model), Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and is_ours(Path(checkpoint)) and not self._is_sharded:
            self._fulltune.checkpoints.load_optimizer(Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and is_ours(Path(checkpoint)) and not self._is_sharded:
            self._fulltune.checkpoints.load_scaler(Path(checkpoint))
        else:
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and is_ours(Path(checkpoint)):
            self._fulltune.checkpoints.load_random(Path(checkpoint))
        else:
            super()._load_rng_state(checkpoint)

    def _finalize_training(self, *args: Any) -> TrainOutput:
        self._fulltune.checkpoints.wait()  # the library may load the best one
        self._scale_loss_of_resumed_training()
        output: TrainOutput = super()._finalize_training(*args)  # type: ignore[no-untyped-call]
        return output

    def _scale_loss_of_resumed_training(self) -> None:
        """Make ``train_loss`` the mean over all steps: transformers divides it by the steps since resuming."""
        before = self._fulltune.steps_before
        if not before:
            return
        own: Any = self
        steps = max(self.state.global_step - own._initial_global_step, 0.001)  # the divisor of transformers
        mean = (own._total_loss_scalar + own._tr_loss.item()) / (before + int(steps))
        own._total_loss_scalar = mean * steps
        own._tr_loss.zero_()

    def _guard(self) -> DivergenceGuard | None:
        """Return the guard against divergence among the callbacks, if there is one."""
        return next((one for one in self.callback_handler.callbacks if isinstance(one, DivergenceGuard)), None)

    def _check_best_metric(self) -> None:
        """Check before the first step that evaluations return ``metric_for_best_model``."""
        chooses = self.args.load_best_model_at_end or self.args.save_strategy == SaveStrategy.BEST
        wanted = self.args.metric_for_best_model
        # An overridden evaluation, or a callback, may add metrics.
        adds = self._overrides("evaluate", "evaluation_loop", "prediction_step")
        if adds or self._has_callback("on_evaluate", outside=("fulltune", "transformers")):
            return
        # Without compute_metrics, an evaluation returns its loss and its speed.
        if not chooses or wanted is None or self.compute_metrics is not None or self.eval_dataset is None:
            return
        sets = [f"{name}_" for name in self.eval_dataset] if isinstance(self.eval_dataset, dict) else [""]
        speed = ("runtime", "samples_per_second", "steps_per_second")
        known = [f"eval_{name}{value}" for name in sets for value in ("loss", *speed)]
        if wanted not in known and f"eval_{wanted}" not in known:
            raise UnknownMetricError(
                f"metric_for_best_model is {wanted!r}",
                expected=f"one of {', '.join(known)}",
                fix=did_you_mean(wanted, known) or "pass a compute_metrics function that returns it",
                field="metric_for_best_model",
            )


def state_of(trainer: Trainer) -> OwnState:
    """Return the settings and the state of a trainer, which has no attribute for them that a subclass might use."""
    return trainer._fulltune


def _losses_and_counts(sums: Tensor, counts: Tensor) -> Tensor:
    """Return losses and counts as ``(B, 2)`` for rows, or ``(2,)`` for a batch, in float64."""
    return torch.stack([sums.double(), counts.double()], dim=-1)


def _with_loss(outputs: Any, loss: Tensor) -> Any:
    """Return the outputs with the loss, as if the model had computed it."""
    if isinstance(outputs, OrderedDict):  # a ModelOutput, whose first value is the loss
        outputs["loss"] = loss
        outputs.move_to_end("loss", last=False)
        return outputs
    return {"loss": loss, **outputs} if isinstance(outputs, dict) else (loss, *outputs)
