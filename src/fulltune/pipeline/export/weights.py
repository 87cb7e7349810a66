"""Write the weights of a model in safetensors with a smaller number type."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from fulltune.models.bundle import Bundle, quiet


def write_bfloat16(bundle: Bundle, folder: Path) -> None:
    """Write a folder for ``from_pretrained`` with all weights rounded to bfloat16."""
    rounded: Any = copy.deepcopy(bundle.model)
    with quiet():
        rounded.to(torch.bfloat16).save_pretrained(folder)
        bundle.tokenizer.save_pretrained(folder)
