"""Diagnose an installation: versions, machine, fast paths, and what is missing for which feature.

:func:`diagnose` imports torch; importing this module does not.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fulltune.records.run import Model
from fulltune.runtime import extras, machine
from fulltune.runtime.version import __version__

#: Packages whose versions affect results or speed.
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "datasets",
    "numpy",
    "pydantic",
    "scikit-learn",
    "sacrebleu",
    "rouge-score",
    "sqlglot",
    "peft",
    "bitsandbytes",
    "gguf",
    "sentencepiece",
)

#: Features with packages beyond the core: module, feature, extra.
OPTIONAL = (
    ("gguf", "models from GGUF files", "gguf"),
    ("sentencepiece", "tokenizers kept as SentencePiece files only", "sentencepiece"),
    ("onnxscript", "`fulltune export` to ONNX", "export"),
    ("onnxruntime", "models in ONNX", "export"),
    ("fastapi", "`fulltune serve`", "serve"),
    ("bitsandbytes", "8-bit optimizers and the method qlora", "adapters"),
    ("deepspeed", "the presets zero1, zero2 and zero3 of `fulltune launch`", "deepspeed"),
)


class Feature(Model):
    """A feature that needs more than the core; ``command`` installs it if it is not ``available``."""

    name: str
    package: str
    available: bool
    command: str


class Diagnosis(Model):
    """The result of :func:`diagnose`. Sizes are in bytes; ``fast_paths`` maps a name to whether it is active."""

    python: str
    platform: str
    versions: dict[str, str | None]
    device: str
    cores: int
    threads: int
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    cpu: str
    fast_paths: dict[str, bool]
    blas: str
    products: str
    features: tuple[Feature, ...]


def diagnose(out: str | Path = "runs") -> Diagnosis:
    """Diagnose this installation and this machine; ``out`` is the folder that runs would be written to."""
    import psutil
    import torch

    return Diagnosis(
        python=sys.version.split()[0],
        platform=machine.describe(),
        versions={"fulltune": __version__} | {name: installed(name) for name in PACKAGES},
        device=_device(torch),
        cores=machine.cores(),
        threads=torch.get_num_threads(),
        memory_bytes=machine.memory_bytes(),
        memory_free_bytes=min(int(psutil.virtual_memory().available), machine.memory_bytes()),
        disk_free_bytes=shutil.disk_usage(_existing(Path(out))).free,
        cpu=f"{machine.cpu_name()} ({torch.backends.cpu.get_cpu_capability()})",
        fast_paths=_fast_paths(torch),
        blas=_blas(torch),
        products=_products(),
        features=tuple(_feature(*row) for row in OPTIONAL),
    )


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _feature(module: str, name: str, extra: str) -> Feature:
    available = importlib.util.find_spec(module) is not None
    return Feature(name=name, package=module, available=available, command=extras.install(extra))


def _device(torch: Any) -> str:
    """Return the device that training will use, in the order in which transformers picks one."""
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _fast_paths(torch: Any) -> dict[str, bool]:
    """Return which fast paths of FP32 training are available. TF32 is not among them: it is not FP32."""
    return {
        "MKL matrix products": torch.backends.mkl.is_available(),
        "oneDNN": torch.backends.mkldnn.is_available(),
        "OpenMP": torch.backends.openmp.is_available(),
        "AVX2": torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"),
        "AVX-512": torch.backends.cpu.get_cpu_capability() == "AVX512",
        "fused AdamW": _fused_adamw(torch),
        "flash attention (SDPA)": _flash_sdpa(torch),
    }


def _products() -> str:
    """Return which products of float32 matrices use oneDNN; measures them if this machine was not measured yet."""
    from fulltune.runtime.kernels.calibration import has_exact_onednn, machine_choices

    if not has_exact_onednn():
        return "all by the BLAS: this torch has no oneDNN, or it is not set to true float32"
    choices = machine_choices()
    why = {"measured": "measured here", "rule": "by rule: the machine was busy, or the choice could not be kept"}
    return f"{choices.fraction:.0%} of the shape classes by oneDNN, the others by the BLAS ({why[choices.source]})"


def _fused_adamw(torch: Any) -> bool:
    """Return whether fused AdamW runs on this device."""
    weight = torch.nn.Parameter(torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu"))
    weight.grad = torch.zeros_like(weight)
    try:
        torch.optim.AdamW([weight], fused=True).step()
    except RuntimeError:
        return False
    return True


def _flash_sdpa(torch: Any) -> bool:
    """Return whether scaled_dot_product_attention may use flash attention in FP32 (CUDA's kernels take halves only)."""
    query = torch.zeros(1, 1, 8, 8)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    except RuntimeError:
        return False
    return True


def _blas(torch: Any) -> str:
    """Return the library that torch reports for FP32 matrix products on the CPU."""
    match = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return match[1] if match else "unknown"


def _existing(path: Path) -> Path:
    """Return the nearest existing folder, so that the free space of a new folder can be read."""
    return path if path.exists() else _existing(path.resolve().parent)
