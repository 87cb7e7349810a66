"""Compare the weights in a checkpoint's files with those of the model that config.json describes.

transformers replaces missing weights and those of other shapes by random ones, and ignores weights that a model lacks.
A new head is made in this way; in the body of a model it is a mistake in the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fulltune.errors import ModelError, abridged
from fulltune.models.reconcile import input_embeddings

#: Names in a message, at most.
_SHOWN = 2

#: Part of the name of a weight in a numbered layer. Heads have none, so that an unused head is not reported.
_IN_LAYER = re.compile(r"\.\d+\.")

#: Layers that checkpoints with a masked-LM head lack and that are trained with a new head.
_WITH_HEAD = "pooler"


def fresh_names(model: PreTrainedModel, loading: Mapping[str, Any]) -> set[str]:
    """Return the names of the parameters with random values, from the loading info of transformers."""
    names = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    return names & {name for name, _ in model.named_parameters()}


def facts(model: PreTrainedModel, loading: Mapping[str, Any], *, is_classifier: bool) -> tuple[str, ...]:
    """Return a sentence about weights that the checkpoint lacks, and one about its weights that the model lacks."""
    body = set(_body(model))
    missing = fresh_names(model, loading)
    missing = {name for name in missing if _WITH_HEAD not in name and (name in body or not is_classifier)}
    unused = {name for name in loading["unexpected_keys"] if _IN_LAYER.search(name)}
    found = []
    if missing:
        found.append(
            f"{_weights(missing)} not in the checkpoint and got random values: {abridged(sorted(missing), _SHOWN)}"
        )
    if unused:
        names = abridged(sorted(unused), _SHOWN)
        found.append(f"{_weights(unused)} in the checkpoint, but not in the model, and not used: {names}")
    return tuple(found)


def check(name: str, model: PreTrainedModel, loading: Mapping[str, Any], *, head_may_differ: bool) -> None:
    """Check that a checkpoint contains the body of the loaded model; a new head is accepted.

    Args:
        name: Name of the model as the user gave it.
        model: Loaded model; ``base_model`` is its body.
        loading: Loading info of transformers.
        head_may_differ: True if a head with other shapes is replaced by a new one.

    Raises:
        ModelError: A weight has another shape or is not finite, or the checkpoint lacks the input embeddings, an entire
            layer of the body, or more than half of the body's weights.
    """
    body = _body(model)
    differing = [found for found in sorted(loading["mismatched_keys"]) if found[0] in body or not head_may_differ]
    if differing:
        raise _differing(name, differing)
    missing = fresh_names(model, loading) & set(body)
    has_missing_layer = any(layer <= missing for layer in _layers(model))
    if has_missing_layer or 2 * len(missing) > len(body) or missing & set(_embeddings(model)):
        raise _incomplete(name, model, missing, body, loading["unexpected_keys"])
    _check_finite(name, model)


def _differing(name: str, differing: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> ModelError:
    """Return the error for weights that do not fit the description of the model: config.json, or a GGUF header."""
    is_gguf = name.endswith(".gguf")
    described = "header" if is_gguf else "config.json"
    file = "correct config.json, or download config.json and weights of one model again"
    return ModelError(
        f"weights of {name!r} have other shapes than its {described} states ({_shapes(differing)})",
        expected=f"the {described} of these weights",
        fix="use the checkpoint that the GGUF file was made from" if is_gguf else file,
        field="model",
    )


def _incomplete(
    name: str, model: PreTrainedModel, missing: Set[str], body: Sequence[str], unused: Set[str]
) -> ModelError:
    """Return the error for a body that would be random in part."""
    found = (
        f"{len(missing)} of {len(body)} body weights of {type(model).__name__} are not in the checkpoint {name!r} "
        f"({abridged(sorted(missing), _SHOWN)}): they would be random"
    )
    prefix = _prefix(missing, unused)
    if not prefix:
        return ModelError(
            found,
            expected="a checkpoint of the complete body; only a head may be new",
            fix="choose a task that fits this checkpoint, or the checkpoint that it is a part of",
            field="model",
        )
    return ModelError(
        f"{found}; the names in its files begin with {prefix!r}",
        expected="the names that save_pretrained writes",
        fix=f"remove {prefix!r} from the names of the weights: a wrapper of the model was saved in place of the model",
        field="model",
    )


def _prefix(missing: Set[str], unused: Set[str]) -> str:
    """Return what the unused names have in front of the missing ones, as if a wrapper of the model was saved."""
    if not missing:
        return ""
    longest = max(missing, key=len)
    prefix = next((name.removesuffix(longest) for name in sorted(unused) if name.endswith(f".{longest}")), "")
    return prefix if prefix and all(f"{prefix}{name}" in unused for name in missing) else ""


def _check_finite(name: str, model: nn.Module) -> None:
    # The sum is not finite if a value is not, and needs no memory.
    damaged = [
        weight_name
        for weight_name, weight in model.named_parameters()
        if not weight.is_meta and not torch.isfinite(weight.detach().sum(dtype=torch.float64))
    ]
    if damaged:
        raise ModelError(
            f"{name!r} has NaN or infinite values in {abridged(sorted(damaged), _SHOWN)}",
            expected="finite weights",
            fix="it is damaged, or its training diverged: use an earlier one, or download it again",
            field="model",
        )


def _body(model: PreTrainedModel) -> list[str]:
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    return [name for name, _ in model.named_parameters() if name.startswith(prefix)]


def _embeddings(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of the weights of the input embeddings."""
    embeddings = input_embeddings(model)
    own = {id(embeddings.weight)} if isinstance(embeddings, nn.Embedding) else set()
    return (name for name, weight in model.named_parameters() if id(weight) in own)


def _layers(model: nn.Module) -> list[set[str]]:
    """Return the names of the parameters of each element of each module list, except empty elements."""
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        for index, layer in enumerate(module):
            names = {f"{name}.{index}.{parameter}" for parameter, _ in layer.named_parameters()}
            if names:
                layers.append(names)
    return layers


def _shapes(differing: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    return abridged([f"{name} is {_shape(stored)}, not {_shape(own)}" for name, stored, own in differing], _SHOWN)


def _shape(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


def _weights(names: Set[str]) -> str:
    return "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
