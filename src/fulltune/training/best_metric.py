"""Check that evaluations return the metric that chooses the best checkpoint."""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import SaveStrategy

from fulltune.errors import UnknownMetricError, did_you_mean
from fulltune.training.user_code import UserCode


def check_best_metric(args: Any, eval_dataset: Any, compute_metrics: Any, user: UserCode) -> None:
    """Check ``metric_for_best_model`` before the first step.

    Args:
        args: ``TrainingArguments``.
        eval_dataset: Rows of the evaluations, or several sets by name, or None.
        compute_metrics: Function of the user that returns metrics of any name, or None.
        user: Knows what the user has replaced in the trainer.

    Raises:
        UnknownMetricError: No evaluation returns it.
    """
    chooses = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    wanted = args.metric_for_best_model
    # An overridden evaluation, or a callback, may add metrics.
    adds = user.overrides("evaluate", "evaluation_loop", "prediction_step")
    if adds or user.has_callback("on_evaluate", outside=("fulltune", "transformers")):
        return
    # Without compute_metrics, an evaluation returns its loss and its speed.
    if not chooses or wanted is None or compute_metrics is not None or eval_dataset is None:
        return
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
    speed = ("runtime", "samples_per_second", "steps_per_second")
    known = [f"eval_{name}{value}" for name in sets for value in ("loss", *speed)]
    if wanted not in known and f"eval_{wanted}" not in known:
        raise UnknownMetricError(
            f"metric_for_best_model is {wanted!r}",
            expected=f"one of {', '.join(known)}",
            fix=did_you_mean(wanted, known) or "pass a compute_metrics function that returns it",
            field="metric_for_best_model",
        )
