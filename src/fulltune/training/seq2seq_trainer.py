"""Define ``fulltune.Seq2SeqTrainer``: a ``transformers.Seq2SeqTrainer``, which generates in evaluations."""

from __future__ import annotations

from functools import partial
from typing import Any

import transformers
from torch import nn

from fulltune.training.trainer import Trainer


class Seq2SeqTrainer(Trainer, transformers.Seq2SeqTrainer):
    """Drop-in for :class:`transformers.Seq2SeqTrainer`.

    ``predict_with_generate`` and the arguments of generation work as in the library, with its
    :class:`~transformers.Seq2SeqTrainingArguments`. The losses and the arguments are those of
    :class:`fulltune.Trainer`. Generation does not change ``eval_loss``.
    """

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        scores: Any = model
        generates = getattr(self.args, "predict_with_generate", False) and not prediction_loss_only
        if generates and self._fulltune.loss.objective(inputs) is not None:
            # After generation, the library computes the loss with a separate pass.
            scores = partial(self._scored, model)
        return super().prediction_step(scores, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)

    def _scored(self, model: nn.Module, **inputs: Any) -> Any:
        """Return the outputs of a model with the loss of :meth:`compute_loss`."""
        return self.compute_loss(model, inputs, return_outputs=True)[1]
