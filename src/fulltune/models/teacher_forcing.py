"""Inputs of an encoder-decoder's decoder, made from the labels that it is to predict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fulltune.errors import ModelError

#: Label of a position that carries no loss.
_IGNORED = -100

#: Models whose own function takes the last label as the first input, where their forward pass and ``generate`` begin
#: with ``decoder_start_token_id``.
_WRAPS = ("fsmt",)


def decoder_input_ids(model: Any, labels: Tensor) -> Tensor:
    """Return the decoder's inputs for ``labels`` ``(B, T)``: moved one to the right, a start token first.

    The model's own function is used where it has one; others (Blenderbot, M2M-100, NLLB-MoE, FSMT) get the start token
    of their config, as their forward pass would give them.

    Args:
        model: An encoder-decoder.
        labels: Token ids; -100 where there is none. Left as they are.

    Raises:
        ModelError: Neither the config nor the generation settings name a start token.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None and model.config.model_type not in _WRAPS:
        inputs: Tensor = own(labels.clone())
        return inputs
    shifted = torch.full_like(labels, start_id(model))
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == _IGNORED, int(model.config.pad_token_id or 0))


def start_id(model: Any) -> int:
    """Return the token that a decoder begins with.

    Raises:
        ModelError: None is named.
    """
    for config in (model.config, getattr(model, "generation_config", None)):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ModelError(
        f"{type(model).__name__} names no token that its decoder begins with",
        expected="decoder_start_token_id in config.json or generation_config.json",
        fix="add it to the checkpoint's config.json; it is usually the id of the padding or the end token",
        field="model",
    )
