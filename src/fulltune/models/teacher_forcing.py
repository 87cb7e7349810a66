"""Derive the decoder inputs of an encoder-decoder from its labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fulltune.errors import ModelError

#: Label of a position that carries no loss.
_IGNORED = -100

#: Model types whose own function uses the last label as the first input, although their forward pass and ``generate``
#: start with ``decoder_start_token_id``.
_WRAPS = ("fsmt",)


def decoder_input_ids(model: Any, labels: Tensor) -> Tensor:
    """Return the decoder inputs for labels: shifted one to the right, with a start token first.

    The model's own function is used if it has one; others (Blenderbot, M2M-100, NLLB-MoE, FSMT) get the start token of
    their config, as in their forward pass.

    Args:
        model: An encoder-decoder.
        labels: Token ids ``(B, T)``, -100 for none. They are not changed.

    Returns:
        ``(B, T)``.

    Raises:
        ModelError: Neither the config nor the generation settings have a start token.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None and model.config.model_type not in _WRAPS:
        inputs: Tensor = own(labels.clone())
        return inputs
    shifted = torch.full_like(labels, start_id(model))
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == _IGNORED, int(model.config.pad_token_id or 0))


def start_id(model: Any) -> int:
    """Return the id of the first decoder input.

    Raises:
        ModelError: Neither the config nor the generation settings have a start token.
    """
    for config in (model.config, getattr(model, "generation_config", None)):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ModelError(
        f"{type(model).__name__} has no start token for its decoder",
        expected="decoder_start_token_id in config.json or generation_config.json",
        fix="add it to the checkpoint's config.json; it is usually the id of the padding or the end token",
        field="model",
    )
