"""Read the settings of a GGUF file that transformers ignores when it loads the file.

It scales positions as the default of the architecture, drops biases that the architecture has none of by default, and
fills tensors of the other parts of a split file with random values: the model then answers otherwise than in llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from fulltune.errors import ModelError

#: Architectures whose ``head_dim`` is the length of a key, although transformers uses another field or a default.
_HEAD_DIM = ("llama", "qwen3")

#: Scaling of positions in Llama 3: bounds of the wavelengths, and the length of pretraining.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_overrides(path: Path, config: PretrainedConfig) -> dict[str, Any]:
    """Return the settings of a GGUF file that transformers ignores, as attributes of its config.

    Args:
        path: The file.
        config: What transformers reads of it.

    Raises:
        ModelError: The file is a part of several, or has tensors or settings that transformers would ignore.
    """
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    settings = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    parts = settings.get("split.count", 1)
    if parts > 1:
        raise ModelError(
            f"{str(path)!r} is one of {parts} parts of a split GGUF file",
            expected="a single file: transformers reads no other parts, and their weights would be random",
            fix="merge the parts with `llama-gguf-split --merge`",
            field="model",
        )
    architecture = settings["general.architecture"]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _check_biases(path, architecture, tensors)
    own = {name.removeprefix(f"{architecture}."): value for name, value in settings.items()}
    found: dict[str, Any] = {}
    if architecture in _HEAD_DIM and "attention.key_length" in own:
        found["head_dim"] = own["attention.key_length"]
    if architecture == "gpt2" and "context_length" in own:
        found["n_positions"] = own["context_length"]
    scaling = _scaling(path, own, tensors, config)
    if scaling:
        found["rope_parameters"] = {"rope_theta": own.get("rope.freq_base", 10_000.0), **scaling}
    return found


def _check_biases(path: Path, architecture: str, tensors: Mapping[str, Any]) -> None:
    biases = [name for name in tensors if name.endswith(".bias")]
    if architecture == "llama" and biases:
        raise _ignored(path, f"biases ({biases[0]})")


def _scaling(
    path: Path, own: Mapping[str, Any], tensors: Mapping[str, Any], config: PretrainedConfig
) -> dict[str, Any] | None:
    """Return how positions are scaled, in the words of transformers; None if they are not, or it reads this itself."""
    if config.model_type == "gpt_oss":
        return None
    factors = sorted(name for name in tensors if name.startswith("rope_"))
    kind = own.get("rope.scaling.type", "none")
    if factors == ["rope_freqs.weight"] and kind in ("none", "llama3"):
        theta = own.get("rope.freq_base", 10_000.0)
        scaling = _llama3(theta, np.asarray(tensors["rope_freqs.weight"].data, dtype=np.float64))
        if scaling:
            return scaling
    if factors:
        raise _ignored(path, f"factors of positions ({factors[0]})")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
    original = own.get("rope.scaling.original_context_length")
    if kind == "linear" and scaling["factor"]:
        return scaling
    if kind == "yarn" and scaling["factor"] and original and not _has_more(own):
        return scaling | {"original_max_position_embeddings": original}
    raise _ignored(path, f"positions scaled by {kind!r}")


def _has_more(own: Mapping[str, Any]) -> bool:
    """Return True if scaling has settings besides its type, factor, original length and a mark of finetuning."""
    known = ("type", "factor", "original_context_length", "finetuned")
    return any(name.startswith("rope.scaling.") and name.split(".")[-1] not in known for name in own)


def _llama3(theta: float, factors: np.ndarray) -> dict[str, Any] | None:
    """Return the scaling of Llama 3 that gives these factors of the wavelengths; None if it does not."""
    factor = float(factors.max())
    low, high, original = _LLAMA3.values()
    for index, value in enumerate(factors):
        turns = original / (2 * math.pi * theta ** (index / len(factors)))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        if not math.isclose(value, 1 / ((1 - smooth) / factor + smooth), rel_tol=1e-3):
            return None
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _ignored(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{str(path)!r} has {what}, which transformers ignores: its answers would be others",
        expected="a GGUF file whose settings transformers reads",
        fix="use the checkpoint that the file was made from",
        field="model",
    )
