"""Apply NEFTune (Jain et al. 2023), noise on input embeddings, to encoder-decoders, where the library does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers.integrations.neftune import neftune_post_forward_hook


@contextmanager
def noise_in_both_stacks(model: Any, alpha: float | None) -> Iterator[None]:
    """Add noise to the input embeddings of the encoder and the decoder in the block.

    The library adds its hook to ``get_input_embeddings()``. In T5, BART and similar models that module is never called:
    each stack has its own module with the same weight. A module that has the hook of the library gets no second one.

    Args:
        model: Unwrapped.
        alpha: ``TrainingArguments.neftune_noise_alpha``; None for no noise.
    """
    with ExitStack() as hooks:
        for embedding in _embeddings(model) if alpha is not None else ():
            embedding.neftune_noise_alpha = alpha
            hooks.callback(delattr, embedding, "neftune_noise_alpha")
            hooks.callback(embedding.register_forward_hook(neftune_post_forward_hook).remove)
        yield


def _embeddings(model: Any) -> list[Any]:
    """Return the embeddings of the two stacks that are separate modules; none for a model with one stack."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return []
    shared = model.get_input_embeddings()
    embeddings = [stack.get_input_embeddings() for stack in (model.get_encoder(), model.get_decoder())]
    return [embedding for embedding in dict.fromkeys(embeddings) if embedding is not shared]
