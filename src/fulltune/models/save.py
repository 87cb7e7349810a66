"""Save a model as a plain folder for ``from_pretrained``."""

from __future__ import annotations

from pathlib import Path

from fulltune.models.bundle import Bundle, quiet
from fulltune.models.greedy import cache_is_neutral
from fulltune.runtime import distributed
from fulltune.store.objects import checkpoint_files


def save_model(bundle: Bundle, folder: Path) -> None:
    """Save a model on the main process: float32 safetensors, tokenizer, and config with the label names.

    If its cache changes the answers, or fails (T5 with another number of layers in its decoder), ``generate`` of the
    saved folder uses none.
    """
    if not distributed.is_main():
        return
    if bundle.head == "lm" and bundle.family != "encoder" and not cache_is_neutral(bundle):
        bundle.model.generation_config.use_cache = False
    for old in checkpoint_files(folder):
        # The registry may hold a hard link to the file, which must not change: it is removed, not overwritten.
        old.unlink()
    with quiet():
        bundle.model.save_pretrained(folder)
        bundle.tokenizer.save_pretrained(folder)
