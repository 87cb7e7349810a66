"""Choose the fast paths of a training by the device, the config, and the installed packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from fulltune.config import Config
from fulltune.runtime.kernels.products import Choices


def is_installed(module: str) -> bool:
    """Return True if a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def training_device(trainer: Mapping[str, Any]) -> str:
    """Return the type of device that the trainer will use.

    Args:
        trainer: The section ``trainer``.
    """
    import torch

    if trainer.get("use_cpu"):
        return "cpu"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


def fast_paths(
    device: str, config: Config, choices: Choices | None, installed: Callable[[str], bool] = is_installed
) -> tuple[str, ...]:
    """Return one line per fast path, for the record and ``fulltune doctor``.

    On an accelerator, kernels of torch and other packages are used (SDPA, fused AdamW, options of ``trainer``), and
    ``speed.kernels`` has no effect.

    Args:
        device: Type of device: ``cpu``, ``cuda``, ``mps``, …
        config: The config of the run.
        choices: The matrix products in use; None if kernels are off.
        installed: Returns True if a package is installed.
    """
    lines = ["SDPA attention"] if device != "cpu" or choices is None else _on_cpu(choices)
    if config.train.optimizer in ("adamw", "adamw_torch_fused"):
        lines.append("fused AdamW")
    if config.trainer.get("use_liger_kernel") and installed("liger_kernel") and device != "cpu":
        lines.append("Liger kernels")
    if config.trainer.get("torch_compile"):
        lines.append("torch.compile")
    if config.speed.precision == "bf16-mixed":
        lines.append("products in bfloat16")
    if unpads(config, device):
        lines.append("micro-batches in parts of similar length")
    return tuple(lines)


def unpads(config: Config, device: str) -> bool:
    """Return True if micro-batches are computed in parts; not with NEFTune, whose noise depends on the batch width."""
    return config.speed.unpad == "auto" and device == "cpu" and not config.trainer.get("neftune_noise_alpha")


def _on_cpu(choices: Choices) -> list[str]:
    products = f"{choices.fraction:.0%} of the classes of float32 products by oneDNN ({choices.source})"
    attention = ("SDPA attention, with dropout in stretches", "cheap dropout masks", "denormals are zero")
    return [*([products] if choices.onednn else []), *attention]
