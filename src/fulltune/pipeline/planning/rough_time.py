"""Estimate the time of a training from counted operations and a short matrix product, without loading a model.

A token takes 6 operations per parameter of the blocks: 2 forward, 4 backward (Kaplan et al. 2020, "Scaling laws for
neural language models", section 2.1); attention and the output layer come on top. The speed of this machine is that of
a product of the model's own sizes. Padding, small operations and Python take the rest, so that the estimate may be
wrong by a factor of two or three.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from fulltune.config import Config
from fulltune.pipeline.planning.stored_model import StoredModel
from fulltune.records.plan import Plan
from fulltune.tasks.base import Features

#: Seconds that products are timed for.
MEASURED = 0.2

#: Tokens of a timed product.
_TOKENS = 256

#: Fraction of the speed of plain products that training reaches.
EFFICIENCY = 0.35

#: Seconds of an optimizer step apart from its products: a part of its own, and one per parameter that AdamW updates.
_A_STEP, _A_PARAMETER = 0.01, 3e-9


def training_seconds(
    config: Config, plan: Plan, model: StoredModel, features: Sequence[Features], *, lm: bool, trains_all: bool
) -> float:
    """Return the estimated seconds of all trainings of a plan.

    Args:
        config: The config.
        plan: The plan, with its steps and sequences.
        model: The sizes of the model.
        features: Training sequences, or a sample of them.
        lm: The model has a language model's output layer.
        trains_all: All weights are trained; otherwise most of them have no gradient.
    """
    if not features:
        return 0.0
    mean = sum(operations(item, model, lm=lm) for item in features) / len(features)
    passes = (1 if trains_all else 2 / 3) * (4 / 3 if config.train.gradient_checkpointing else 1)
    epochs = plan.total_steps / max(1, plan.steps_per_epoch)
    products = mean * passes * plan.sequences * epochs / (EFFICIENCY * operations_per_second(model))
    updated = model.parameters if trains_all else 0
    return plan.trainings * (products + plan.total_steps * (_A_STEP + _A_PARAMETER * updated))


def operations(item: Features, model: StoredModel, *, lm: bool) -> float:
    """Return the operations of a sequence in training, forward and backward."""
    read = len(item.input_ids)
    written = len(item.labels) if isinstance(item.labels, list) else 0
    blocks = max(0, model.parameters - model.vocabulary * model.hidden)
    if model.is_encoder_decoder:  # half of the blocks read, the other half write
        layers = model.layers / 2
        attended = layers * (read**2 + written**2 + read * written)
        linear = blocks / 2 * (read + written)
    else:
        attended, linear = model.layers * read**2, blocks * read
    output = model.vocabulary * model.hidden * written if lm else 0
    return float(6 * (linear + output) + 12 * model.hidden * attended)


def operations_per_second(model: StoredModel) -> float:
    """Return the speed of matrix products in float32 of the sizes of a model, timed for :data:`MEASURED` seconds.

    It is that of the fastest product: others wait for cores that other programs use, for most of the time if these are
    many.
    """
    random = np.random.default_rng(0)
    rows = random.standard_normal((_TOKENS, model.hidden), dtype=np.float32)
    weights = random.standard_normal((model.hidden, model.feed_forward), dtype=np.float32)
    np.matmul(rows, weights)  # the first product starts threads
    fastest, end = float("inf"), time.perf_counter() + MEASURED
    while (started := time.perf_counter()) < end:
        np.matmul(rows, weights)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * _TOKENS * model.hidden * model.feed_forward / fastest
