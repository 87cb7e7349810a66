"""Inject LoRA layers (Hu et al. 2022) of PEFT into a model without wrapping it, and merge them into its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fulltune.errors import ModelError
from fulltune.models.adapters import nf4
from fulltune.models.adapters.packages import peft

#: PEFT's name of the adapter; a model has only one.
_ADAPTER_NAME = "default"

#: Parts of the names of tensors that change a weight; all others replace one.
_PARTIAL = (".lora_", ".token_adapter.")


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers: ``nn.Linear``, GPT-2's ``Conv1D``, and 4-bit layers."""
    names = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) or nf4.is_quantized(layer):
            names.append(name)
    return names


def inject(
    model: PreTrainedModel,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    full_modules: Sequence[str] = (),
    tokens: Sequence[int] = (),
) -> Any:
    """Add two factors to each target layer, ``W x + alpha/rank · B A x`` with B = 0, and freeze everything else.

    Args:
        model: Changed in place.
        targets: Full names of layers.
        rank: Rank of the factors.
        alpha: Scale of the product of the factors, divided by the rank.
        dropout: Dropout probability of the factors' input.
        full_modules: Names of modules that are trained entirely; the model gets copies of them.
        tokens: Rows of the embedding that are trained, too.

    Returns:
        PEFT's ``LoraModel``, for :func:`merge` and :func:`state`.
    """
    config = peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        modules_to_save=list(full_modules) or None,
        trainable_token_indices=list(tokens) or None,
        fan_in_fan_out=_is_transposed(model),
        task_type=_task_type(model),
    )
    return _injected(model, config)


def _injected(model: Any, config: Any) -> Any:
    """Inject LoRA layers into a model, and return PEFT's ``LoraModel``."""
    with _marked_as_4bit(model):
        return peft().LoraModel(model, {_ADAPTER_NAME: config}, _ADAPTER_NAME)


def state(tuner: Any) -> dict[str, Tensor]:
    """Return the trained tensors by PEFT's names without their prefix."""
    tensors: dict[str, Tensor] = peft().get_peft_model_state_dict(tuner.model, save_embedding_layers=False)
    return tensors


def adapter_config(tuner: Any) -> dict[str, Any]:
    """Return PEFT's config as a mapping."""
    config: dict[str, Any] = tuner.peft_config[_ADAPTER_NAME].to_dict()
    return config


def merge(tuner: Any) -> None:
    """Add the products of the factors to the weights, after converting 4-bit layers to float32.

    Raises:
        ModelError: A merged weight is not finite.
    """
    model: Any = tuner.model
    for name, layer in list(model.named_modules()):
        base = getattr(layer, "base_layer", None)
        if base is not None and nf4.is_quantized(base):
            weight = nf4.dequantized(base) + layer.get_delta_weight(_ADAPTER_NAME)
            model.set_submodule(name, nf4.restored(base, weight.detach()))
    try:
        tuner.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            f"the adapter cannot be merged ({error})", expected="finite numbers", fix="lower train.learning_rate"
        ) from error
    nf4.restore(model)


def apply(model: PreTrainedModel, folder: Path, tensors: Mapping[str, Tensor], *, with_head: bool) -> None:
    """Merge a stored adapter into its base in place.

    Args:
        model: The base.
        folder: Folder of the adapter.
        tensors: Its tensors by PEFT's names without their prefix.
        with_head: Apply the classification head of the adapter, too.

    Raises:
        ModelError: Tensors do not fit the base, or a merged weight is not finite.
    """
    config = peft().LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    config.fan_in_fan_out = _is_transposed(model)
    if not with_head:
        config.modules_to_save = None
    tensors = _renamed(model, config, tensors)
    if not with_head:
        tensors = _without_entire_weights(model, folder, config, tensors)
    tuner = _injected(model, config)
    unexpected = peft().set_peft_model_state_dict(model, dict(tensors)).unexpected_keys
    if unexpected:
        raise _misfit(folder, unexpected)
    merge(tuner)
    model.requires_grad_(True)


def _without_entire_weights(model: Any, folder: Path, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the entire weights of an adapter into the model, and return its other tensors.

    These are biases, and modules that were trained entirely, such as the embeddings and the language-modeling head. A
    head that the model lacks, and a classification head, are left out.

    Raises:
        ModelError: Weights do not fit the base.
    """
    body = f"{model.base_model_prefix}."
    is_classifier = _task_type(model) == "SEQ_CLS"
    weights = dict(model.named_parameters(remove_duplicate=False))
    others, entire = {}, {}
    for name, value in tensors.items():
        own = name.replace(".base_layer.", ".")
        if any(part in name for part in _PARTIAL):
            others[name] = value
        elif own in weights and (own.startswith(body) or not is_classifier):
            entire[own] = value
        elif not (is_classifier or config.task_type == "SEQ_CLS"):
            raise _misfit(folder, [name])
    _copy(weights, entire, folder)
    return others


def _copy(weights: Mapping[str, Tensor], values: Mapping[str, Tensor], folder: Path) -> None:
    """Copy values into weights; those of tied weights must be equal."""
    wrong = [name for name, value in values.items() if name not in weights or weights[name].shape != value.shape]
    if wrong:
        raise _misfit(folder, wrong)
    for name, value in values.items():
        weights[name].data.copy_(value)
    tied = [name for name, value in values.items() if not weights[name].data.equal(value.to(weights[name]))]
    if tied:
        raise _misfit(folder, tied)


def _misfit(folder: Path, names: Sequence[str]) -> ModelError:
    return ModelError(
        f"{len(names)} tensors of the adapter do not fit its base: {names[0]}",
        expected="weights of the base, of the same shapes, and equal ones where it ties two",
        fix="merge the adapter with PEFT's merge_and_unload, and use the result",
        where=str(folder),
        field="model",
    )


def _renamed(model: PreTrainedModel, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their names in this model, which may be the body alone, or have another head.

    A head puts the name of the body before its layers (``bert.``). Targets in the config lose it as well: PEFT
    compares the ends of names.
    """
    prefix = f"{model.base_model_prefix}."
    layers = {name for name, _ in model.named_modules()}

    def own(name: str) -> str:
        layer = re.split("|".join(map(re.escape, (*_PARTIAL, ".base_layer."))), name)[0]
        layer = layer.rpartition(".")[0] if layer == name else layer
        if layer in layers:
            return name
        if layer.removeprefix(prefix) in layers:
            return name.removeprefix(prefix)
        return prefix + name if prefix + layer in layers else name

    named = {own(name): value for name, value in tensors.items()}
    if named.keys() != tensors.keys() and not isinstance(config.target_modules, str):
        config.target_modules = {target.removeprefix(prefix) for target in config.target_modules or ()}
    return named


@contextmanager
def _marked_as_4bit(model: Any) -> Iterator[None]:
    """Mark a model with 4-bit layers within the block: PEFT looks for them only in a model with this mark."""
    has_4bit = any(nf4.is_quantized(layer) for layer in model.modules())
    try:
        if has_4bit:
            model.is_loaded_in_4bit = True
        yield
    finally:
        if has_4bit:
            del model.is_loaded_in_4bit


def _is_transposed(model: nn.Module) -> bool:
    """Return whether weights are stored as ``(in, out)``, as in GPT-2."""
    return any(isinstance(layer, Conv1D) for layer in model.modules())


def _task_type(model: Any) -> str | None:
    """Return PEFT's task type of a model."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.can_generate() else None
