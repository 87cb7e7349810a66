"""Select sparse or full attention of BigBird for every batch.

The models of transformers switch to full attention at the first short text and never switch back, so that outputs for
long texts would depend on earlier texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_SPARSE, _FULL = "block_sparse", "original_full"


def choose_attention_by_length(model: PreTrainedModel) -> None:
    """Make a model with block-sparse attention select its attention by the width of each batch.

    Other models are not changed.
    """
    if getattr(model.config, "attention_type", None) != _SPARSE:
        return
    for module in _switchable(model):
        module.register_forward_pre_hook(_choose, with_kwargs=True)


@contextmanager
def attention_type_kept(model: nn.Module) -> Iterator[None]:
    """Restore the attention of a model after the block: a single short text would switch it for good."""
    types = [(module, getattr(module, "attention_type")) for module in _switchable(model)]  # noqa: B009
    try:
        yield
    finally:
        for module, kind in types:
            module.set_attention_type(kind)


def _switchable(model: nn.Module) -> list[Any]:
    """Return the parts of a model that choose between two kinds of attention."""
    return [one for one in model.modules() if isinstance(one, PreTrainedModel) and hasattr(one, "set_attention_type")]


def _choose(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    candidates = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    inputs = next(value for value in candidates if value is not None)
    own: Any = module
    # Blocks that a token attends to: global, neighboring and random ones. Sparse attention requires a longer text.
    blocks = 5 + 2 * own.config.num_random_blocks
    own.set_attention_type(_FULL if inputs.shape[1] <= blocks * own.config.block_size else _SPARSE)
