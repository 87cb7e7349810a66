"""Write a model as a plain folder for ``from_pretrained``."""

from __future__ import annotations

from pathlib import Path

from fulltune.models.bundle import Bundle, quiet
from fulltune.runtime import distributed
from fulltune.store.objects import checkpoint_files


def save_model(bundle: Bundle, folder: Path) -> None:
    """A plain ``from_pretrained`` folder: float32 safetensors, tokenizer, config with the label names."""
    if not distributed.is_main():
        return
    for old in checkpoint_files(folder):
        # Written over in place, it would change under the registry, which may hold it under a second name.
        old.unlink()
    with quiet():
        bundle.model.save_pretrained(folder)
        bundle.tokenizer.save_pretrained(folder)
