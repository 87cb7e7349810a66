"""Save a model as a plain folder for ``from_pretrained``."""

from __future__ import annotations

from pathlib import Path

from fulltune.models.bundle import Bundle, quiet
from fulltune.runtime import distributed
from fulltune.store.objects import checkpoint_files


def save_model(bundle: Bundle, folder: Path) -> None:
    """Save a model on the main process: float32 safetensors, tokenizer, and config with the label names."""
    if not distributed.is_main():
        return
    for old in checkpoint_files(folder):
        # The registry may hold a hard link to the file, which must not change: it is removed, not overwritten.
        old.unlink()
    with quiet():
        bundle.model.save_pretrained(folder)
        bundle.tokenizer.save_pretrained(folder)
