"""Which fast paths a job takes: a function of the device, the config, and what is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from fulltune.config import Config
from fulltune.runtime.kernels.products import Choices


def is_installed(module: str) -> bool:
    """Whether a module can be imported; nothing is."""
    return importlib.util.find_spec(module) is not None


def training_device(trainer: Mapping[str, Any]) -> str:
    """The kind of device that the trainer will take: an accelerator where there is one and the config allows it."""
    import torch

    found = None if trainer.get("use_cpu") else torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def fast_paths(
    device: str, config: Config, choices: Choices | None, installed: Callable[[str], bool] = is_installed
) -> tuple[str, ...]:
    """One short line each, for the record and the doctor.

    On an accelerator the ecosystem's own kernels are taken (SDPA, fused AdamW, what ``trainer`` asks for): there the
    switch ``speed.kernels`` changes nothing.

    Args:
        device: ``cpu``, ``cuda``, ``mps``, …
        config: The job.
        choices: The products in force; None where kernels are off.
        installed: Whether a package is there.
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
        lines.append("micro-batches in parts of like length")
    return tuple(lines)


def unpads(config: Config, device: str) -> bool:
    """Whether a job's micro-batches are computed in parts; not with NEFTune, whose noise depends on a batch's width."""
    return config.speed.unpad == "auto" and device == "cpu" and not config.trainer.get("neftune_noise_alpha")


def _on_cpu(choices: Choices) -> list[str]:
    products = f"{choices.fraction:.0%} of the classes of float32 products by oneDNN ({choices.source})"
    attention = ("SDPA attention, with dropout in stretches", "cheap dropout masks", "denormals are zero")
    return [*([products] if choices.onednn else []), *attention]
