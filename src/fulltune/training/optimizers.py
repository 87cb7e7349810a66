"""Resolve the optimizer of a config, and measure the size of its state.

    adamw        torch's fused AdamW: two float32 moments per parameter
    adamw-8bit   AdamW of bitsandbytes: moments in blocks of 8-bit numbers (Dettmers et al. 2022);
                 embeddings, and tensors of fewer than 4096 numbers, keep float32 moments

Any other name is one of ``TrainingArguments.optim``.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from fulltune.errors import ConfigError, did_you_mean
from fulltune.runtime import extras

if TYPE_CHECKING:
    import torch

#: Names of fulltune, and those of the library.
NAMES = {"adamw": "adamw_torch_fused", "adamw-8bit": "adamw_bnb_8bit"}

_FROM_BITSANDBYTES = ("bnb", "8bit", "paged", "lion", "ademamix")


def optimizer_name(name: str) -> str:
    """Return the value of ``TrainingArguments.optim`` for ``train.optimizer``.

    Raises:
        ConfigError: There is no such optimizer.
        MissingDependencyError: It needs bitsandbytes, which is not installed.
    """
    from transformers.training_args import OptimizerNames

    known = [*NAMES, *(one.value for one in OptimizerNames)]
    if name not in known:
        raise ConfigError(
            f"there is no optimizer {name!r}",
            expected=f"{', '.join(NAMES)}, or a name of TrainingArguments.optim",
            fix=did_you_mean(name, known) or f"choose one of {', '.join(known)}",
            field="train.optimizer",
        )
    chosen = NAMES.get(name, name)
    if _needs_bitsandbytes(chosen) and importlib.util.find_spec("bitsandbytes") is None:
        raise extras.missing(f"the optimizer {name!r}", ["bitsandbytes"], "adapters", field="train.optimizer")
    return chosen


def has_8bit_state(name: str) -> bool:
    """Return True if an optimizer of this name stores its moments as 8-bit numbers."""
    return "8bit" in NAMES.get(name, name)


def _needs_bitsandbytes(name: str) -> bool:
    is_other = name.startswith(("galore", "adamw_torch"))
    return not is_other and any(part in name for part in _FROM_BITSANDBYTES)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all tensors in the state of an optimizer, on this process."""
    import torch

    total = 0
    for state in optimizer.state.values():
        for value in state.values():
            local = value.to_local() if hasattr(value, "to_local") else value  # the shard of a sharded tensor
            total += local.nbytes if isinstance(local, torch.Tensor) else 0
    return total
