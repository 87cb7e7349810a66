"""BigBird attends in blocks to long texts and to everything in short ones, whatever it has read before.

The library's models switch to full attention at the first short text and stay there, so that the answer to a long text
would depend on the texts before it.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

_SPARSE, _FULL = "block_sparse", "original_full"


def choose_attention_by_length(model: PreTrainedModel) -> None:
    """Let a model with block-sparse attention choose its attention anew for every batch, by the batch's width alone.

    Models of other kinds are left as they are.
    """
    if getattr(model.config, "attention_type", None) != _SPARSE:
        return
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module, "set_attention_type"):
            module.register_forward_pre_hook(_choose, with_kwargs=True)


def _choose(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    inputs = next(one for one in given if one is not None)
    own: Any = module
    # The blocks that a token sees: global ones, its neighbors and random ones. The library needs a longer text.
    blocks = 5 + 2 * own.config.num_random_blocks
    own.set_attention_type(_FULL if inputs.shape[1] <= blocks * own.config.block_size else _SPARSE)
