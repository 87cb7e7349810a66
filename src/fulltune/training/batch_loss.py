"""Compute the loss of a batch for a trainer: at the head, from the logits, or by the model, in groups of rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fulltune.errors import ArgumentError, Problem
from fulltune.models.fast_paths import SHORTEST
from fulltune.models.head_loss import LossAtHead
from fulltune.training.batches.row_groups import Computed, joined, longest_row, part_of, row_groups, warn_of_padding
from fulltune.training.evaluation_loss import EvaluationLoss
from fulltune.training.loss_check import LossCheck, check_loss, without_labels
from fulltune.training.objective import (
    LabelKind,
    Objective,
    checked_class_weights,
    checked_r_drop,
    kind_of,
    note_problem_type,
)
from fulltune.training.protocols import PublicTrainer, is_sharded
from fulltune.training.user_code import UserCode


class BatchLoss:
    """The loss of one trainer.

    Args:
        trainer: The trainer.
        user: Knows what the user has replaced in it.
        evaluated: Receives the losses of rows in evaluations.
        class_weights: ``(C,)`` weights of classes, or None.
        r_drop: Weight of R-Drop.

    Attributes:
        at_head: Computes the loss without logits; None before its first use.

    Raises:
        ArgumentError: Class weights or R-Drop for a model without classes, or together with a custom loss.
    """

    def __init__(
        self,
        trainer: PublicTrainer,
        user: UserCode,
        evaluated: EvaluationLoss,
        *,
        class_weights: Sequence[float] | None,
        r_drop: float,
    ) -> None:
        self._trainer = trainer
        self._user = user
        self._evaluated = evaluated
        self._class_weights = checked_class_weights(user.model, class_weights)
        self._r_drop = checked_r_drop(user.model, r_drop)
        self._is_loss_only = False
        self._checks: dict[LabelKind, LossCheck] = {}
        self._checks_of: Any = None
        self.at_head: LossAtHead | None = None
        self.check_settings()

    def check_settings(self) -> None:
        """Check that settings of the loss are not ignored because another loss is computed.

        Raises:
            ArgumentError: They are.
        """
        reason = self._user.loss_reason()
        wanted = {"class_weights": self._class_weights is not None, "r_drop": bool(self._r_drop)}
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

    # ---- What is computed ----

    def objective(self, inputs: Any) -> Objective | None:
        """Return the loss to compute, or None if that of the library or the user must be used."""
        if "shift_labels" in inputs or self._user.leaves("the loss", self._user.loss_reason()):
            return None
        labels = inputs.get("labels")
        promised = kind_of(self._user.model, labels) if isinstance(labels, Tensor) else None
        label_kind = None if promised is None else self.check(promised).kind
        if label_kind is None:
            return None
        note_problem_type(self._user.model, label_kind)
        return Objective(label_kind, self._trainer.args.label_smoothing_factor, self._class_weights)

    def kind(self) -> LabelKind | None:
        """Return the kind of labels as far as it is known without labels, or None."""
        promised = kind_of(self._user.model)
        return None if promised is None else self.check(promised).kind

    def check(self, label_kind: LabelKind) -> LossCheck:
        """Check the loss of the model, once per kind of labels."""
        model = self._user.model
        if self._checks_of is not model and not (self._checks and is_sharded(self._trainer)):
            self.forget_model()
            self._checks_of = model
        if label_kind not in self._checks:
            checked = check_loss(model, label_kind)
            self._checks |= {label_kind: checked, checked.kind: checked}
        return self._checks[label_kind]

    def forget_model(self) -> None:
        """Drop what is known of a model that is replaced by another one."""
        self._user.forget_model()
        self._checks_of = None
        self._checks = {}
        self.at_head = None

    def warn_of_padding(self) -> None:
        """Warn if padding changes the outputs of a model that an engine will shard: then it cannot be checked."""
        label_kind = self.kind()
        if label_kind is not None and self.check(label_kind).is_checked:
            warn_of_padding(self._user.model, SHORTEST)

    def count(self, batches: Sequence[Any], device: torch.device) -> Tensor | None:
        """Return the number of labels of the batches of a step over all processes, or None if it is not known."""
        objectives = [self.objective(batch) for batch in batches]
        known = [objective for objective in objectives if objective is not None]
        if not known or len(known) < len(objectives):
            return None
        counts = [one.count(batch["labels"]).to(device) for one, batch in zip(known, batches, strict=True)]
        count = torch.stack(counts).sum()
        if self._trainer.args.world_size > 1:
            count = self._trainer.accelerator.gather(count).sum() / self._trainer.get_tp_size()
        return count

    def groups(self, inputs: dict[str, Any], objective: Objective) -> list[list[int]] | None:
        """Return the groups of rows that are computed together, or None for the unchanged batch.

        The batch is unchanged with several processes, which must all run the same number of passes (a warning is logged
        if this changes the loss), and for a model whose loss cannot be checked.
        """
        if not self.check(objective.kind).is_checked or is_sharded(self._trainer):
            return None
        if self._trainer.args.world_size > 1:
            warn_of_padding(self._user.model, longest_row(inputs))
            return None
        if self._user.keeps_whole(inputs):
            return None
        return row_groups(self._user.model, inputs, objective.kind)

    @contextmanager
    def without_logits(self, is_loss_only: bool) -> Iterator[None]:
        """Compute the loss of an evaluation without logits if nothing but the loss is wanted."""
        self._is_loss_only = is_loss_only
        try:
            yield
        finally:
            self._is_loss_only = False

    # ---- Computing ----

    def __call__(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        objective: Objective,
        *,
        count: Tensor | int | None,
        with_outputs: bool,
    ) -> tuple[Tensor, Any]:
        """Return the loss of a batch, and the outputs of the model with this loss.

        Args:
            model: The model, with its wrappers.
            inputs: The batch.
            objective: The loss.
            count: Number of labels in the effective batch over all processes; None for the mean of this batch.
            with_outputs: The outputs are needed.
        """
        groups = self.groups(inputs, objective)
        parts = [inputs] if groups is None else [part_of(inputs, rows, objective.kind) for rows in groups]
        computed = joined([self._computed(model, part, objective, with_outputs) for part in parts], groups or [])
        self._evaluated.see(computed.row_losses)
        if count is None:
            loss = computed.total / computed.counts.sum()
        else:
            # Distributed data parallelism averages gradients over processes; this denominator spans all of them.
            processes = self._trainer.accelerator.num_processes // self._trainer.get_tp_size()
            loss = computed.total / count * processes
        return loss, _with_loss(computed.outputs, loss) if with_outputs else None

    def _computed(self, model: nn.Module, inputs: dict[str, Any], objective: Objective, with_outputs: bool) -> Computed:
        """Compute the summed loss of rows in the way that suits the model, at its head if no outputs are needed."""
        if not self.check(objective.kind).is_cross_entropy:
            return self._from_model(model, inputs, objective)
        at_head = None
        if objective.is_of_tokens and (not with_outputs if model.training else self._is_loss_only):
            at_head = self._at_head(model, inputs, objective)
        return at_head or self._from_logits(model, inputs, objective)

    def _from_logits(self, model: nn.Module, inputs: dict[str, Any], objective: Objective) -> Computed:
        """Compute the loss from the logits of the model."""
        labels = inputs["labels"]
        outputs, logits = self._run(model, inputs, objective)
        row_losses = None if model.training else _losses_and_counts(*objective.plain()(logits, labels))
        sums, counts = objective(logits, labels)
        if self._r_drop and model.training:
            second = self._run(model, inputs, objective)[1]  # under another dropout mask
            mean = (sums + objective(second, labels)[0]) / 2
            sums = mean + self._r_drop * objective.divergence(logits, second, counts)
        return Computed(outputs, sums.sum(), counts, row_losses)

    def _from_model(self, model: nn.Module, inputs: dict[str, Any], objective: Objective) -> Computed:
        """Compute with the loss of the model, a mean, which is multiplied by the number of labels.

        Label smoothing and class weights change the cross-entropy in it, and no other term. Evaluation reports the
        cross-entropy of the logits, as for every other model.
        """
        if self._r_drop and model.training:
            raise ArgumentError(
                f"R-Drop for {type(self._user.model).__name__}, which computes its own loss",
                expected="a model whose loss is the cross-entropy of its logits",
                fix="leave r_drop out",
                field="r_drop",
            )
        outputs = model(**self._without_labels(inputs, objective), labels=inputs["labels"])
        if not self.check(objective.kind).is_checked:
            return _unchecked(outputs, inputs["labels"], objective, model.training)
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

    def _at_head(self, model: nn.Module, inputs: dict[str, Any], objective: Objective) -> Computed | None:
        """Compute the loss at the head, without logits; None if that is not possible or not faster.

        In evaluation this is the plain likelihood.
        """
        self.at_head = self.at_head or LossAtHead(_head(self._trainer, self._user.model))
        head = self.at_head.head
        if head is not None and self._user.reads("computing the loss in the head", (head,)):
            return None
        smoothing = objective.smoothing if model.training else 0.0
        labels = objective.aligned(inputs["labels"])
        run = self.at_head.run(model, self._without_labels(inputs, objective), labels, smoothing)
        if run is None:
            return None
        outputs, losses = run
        row_losses = None if model.training else _losses_and_counts(losses.losses.sum(dim=1), losses.counts)
        return Computed(outputs, losses.total, losses.counts, row_losses)

    def _run(self, model: nn.Module, inputs: dict[str, Any], objective: Objective) -> tuple[Any, Tensor]:
        """Return the outputs of a pass without labels, and the logits in them."""
        outputs = model(**self._without_labels(inputs, objective))
        return outputs, outputs["logits"] if isinstance(outputs, dict) else outputs[0]

    def _without_labels(self, inputs: dict[str, Any], objective: Objective) -> dict[str, Any]:
        return without_labels(self._user.model, inputs, objective.kind)


def _head(trainer: PublicTrainer, model: Any) -> nn.Module | None:
    """Return the head of an unwrapped model in which its loss may be computed, or None."""
    # A gradient scaler must see scaled gradients overflow; replicas of DataParallel would share one patched head.
    is_plain = trainer.accelerator.scaler is None and trainer.args.n_gpu <= 1 and not trainer.args.torch_compile
    is_plain = is_plain and not trainer.is_deepspeed_enabled
    return model.get_output_embeddings() if is_plain and hasattr(model, "get_output_embeddings") else None


def _unchecked(outputs: Any, labels: Tensor, objective: Objective, is_training: bool) -> Computed:
    """Compute with the loss of the model in training and in evaluation, if nothing is known of its logits."""
    own, rest = (outputs["loss"], outputs) if isinstance(outputs, dict) else (outputs[0], outputs[1:])
    count = objective.plain().count(labels).to(own.device)
    return Computed(rest, own * count, count, None if is_training else _losses_and_counts(own * count, count)[None])


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
