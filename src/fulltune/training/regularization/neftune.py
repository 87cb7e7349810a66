"""NEFTune (Jain et al. 2023, noise on input embeddings) where the library forgets it: in encoder-decoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers.integrations.neftune import neftune_post_forward_hook


@contextmanager
def noise_in_both_stacks(model: Any, alpha: float | None) -> Iterator[None]:
    """Noise on what the encoder and the decoder read, as ``TrainingArguments.neftune_noise_alpha`` promises.

    The library hooks ``get_input_embeddings()``. In T5, BART and their kin that module only lends its weight to one of
    each stack, is never called itself, and no noise would come of it. Whatever the library hooks is not hooked twice.
    """
    with ExitStack() as held:
        for embedding in _embeddings(model) if alpha is not None else ():
            embedding.neftune_noise_alpha = alpha
            held.callback(delattr, embedding, "neftune_noise_alpha")
            held.callback(embedding.register_forward_hook(neftune_post_forward_hook).remove)
        yield


def _embeddings(model: Any) -> list[Any]:
    """The stacks' own embeddings; none where there are no two stacks."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return []
    shared = model.get_input_embeddings()
    found = [stack.get_input_embeddings() for stack in (model.get_encoder(), model.get_decoder())]
    return [embedding for embedding in dict.fromkeys(found) if embedding is not shared]
