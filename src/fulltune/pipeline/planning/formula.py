"""Estimate the memory of a training from counts alone."""

from __future__ import annotations

from collections.abc import Sequence

from fulltune.pipeline.job import Inputs
from fulltune.pipeline.planning.engine_memory import block_numbers
from fulltune.pipeline.planning.stored_model import StoredModel
from fulltune.tasks.base import Features
from fulltune.training.regularization.costs import extra_copies

#: Bytes of a process before any model: the interpreter, torch, transformers, small data (Linux, x86-64).
PROGRAM = 650 * 2**20

#: Bytes of a float32 number.
_FLOAT = 4

#: Moments of AdamW per parameter.
_MOMENTS = 2

#: Overhead of the allocator, as in measured plans (:data:`fulltune.pipeline.planning.memory.SLACK`).
SLACK = 0.05

#: Rows whose logits are computed at one time, at the output layer (:mod:`fulltune.models.head_loss`).
_LOGITS_AT_ONCE = 1024


def memory_by_formula(inputs: Inputs, model: StoredModel, features: Sequence[Features], steps: int) -> dict[str, int]:
    """Return the estimated bytes at the peak of training, by part, with the names of a measured plan.

    Weights, gradients and AdamW's moments take 4 + 4 + 8 bytes per trainable parameter (Rajbhandari et al. 2020,
    "ZeRO", section 3.1, in FP32). Activations are those of a micro-batch of the longest rows: ``8 h + 3 f`` numbers per
    token and block (Korthikanti et al. 2022, equation 1, without dropout masks and attention scores), or with gradient
    checkpointing the inputs of all blocks and one active block. Optimizers other than AdamW are counted as AdamW.

    Args:
        inputs: The config with its method.
        model: The sizes of the model.
        features: Training sequences, or a sample of them.
        steps: Optimizer steps of the training.
    """
    config = inputs.config
    weights = _FLOAT * model.parameters
    trained = weights if inputs.method.trains_all else 0
    longest = max((_width(item, model) for item in features), default=0)
    budget = config.speed.batch_tokens
    tokens = longest * (config.train.batch_size if budget is None else max(1, budget // max(1, longest)))
    training = {
        "weights": weights,
        "gradients": trained,
        "optimizer state": _MOMENTS * trained,
        "activations": _activations(
            model, tokens, recomputed=config.train.gradient_checkpointing, lm=inputs.task.head == "lm"
        ),
        "copies for regularizers": weights * extra_copies(config.regularize),
    }
    base = weights if inputs.task.head != "lm" else 0
    slack = round(SLACK * sum(training.values()))
    parts = {"program and data": PROGRAM, "base model": base, **training, "allocator": slack}
    return {name: size for name, size in parts.items() if size}


def _width(item: Features, model: StoredModel) -> int:
    target = len(item.labels) if model.is_encoder_decoder and isinstance(item.labels, list) else 0
    return len(item.input_ids) + target


def _activations(model: StoredModel, tokens: int, *, recomputed: bool, lm: bool) -> int:
    block = block_numbers(model.hidden, model.feed_forward)
    layers = model.layers * model.hidden + block if recomputed else model.layers * block
    logits = 2 * model.vocabulary * min(tokens, _LOGITS_AT_ONCE) if lm else 0
    return _FLOAT * (tokens * layers + logits)
