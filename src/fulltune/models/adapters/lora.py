"""LoRA (Hu et al. 2022) by PEFT, injected into a model that stays of its own class, and merged into its weights."""

from __future__ import annotations

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

#: PEFT's name for the only adapter that a model has here.
_ONE = "default"


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all layers that are a matrix product: ``nn.Linear``, GPT-2's ``Conv1D``, those in 4 bits."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) or nf4.is_quantized(layer)
    ]


def inject(
    model: PreTrainedModel,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    whole: Sequence[str] = (),
    tokens: Sequence[int] = (),
) -> Any:
    """Put two factors beside each target layer, ``W x + alpha/rank · B A x`` with B = 0, and freeze all else.

    Args:
        model: Changed in place.
        targets: Whole names of layers.
        rank, alpha, dropout: As PEFT has them.
        whole: Names of modules that are trained whole; the model gets copies of them.
        tokens: Rows of the embedding that are trained too.

    Returns:
        PEFT's ``LoraModel``, which :func:`merge` and :func:`state` take.
    """
    config = peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        modules_to_save=list(whole) or None,
        trainable_token_indices=list(tokens) or None,
        fan_in_fan_out=_is_turned(model),
        task_type=_task_type(model),
    )
    return _injected(model, config)


def _injected(model: Any, config: Any) -> Any:
    with _in_4_bits(model):
        return peft().LoraModel(model, {_ONE: config}, _ONE)


def state(tuner: Any) -> dict[str, Tensor]:
    """What was trained, under PEFT's names without their prefix."""
    found: dict[str, Tensor] = peft().get_peft_model_state_dict(tuner.model, save_embedding_layers=False)
    return found


def config_of(tuner: Any) -> dict[str, Any]:
    """PEFT's config as a mapping."""
    found: dict[str, Any] = tuner.peft_config[_ONE].to_dict()
    return found


def merge(tuner: Any) -> None:
    """Add the products of the factors to the weights; layers in 4 bits become float32 ones first.

    Raises:
        ModelError: A merged weight is not a finite number.
    """
    model: Any = tuner.model
    for name, layer in list(model.named_modules()):
        base = getattr(layer, "base_layer", None)
        if base is not None and nf4.is_quantized(base):
            weight = nf4.dequantized(base) + layer.get_delta_weight(_ONE)
            model.set_submodule(name, nf4.restored(base, weight.detach()))
    try:
        tuner.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            f"the adapter cannot be merged ({error})", expected="finite numbers", fix="lower train.learning_rate"
        ) from error
    nf4.restore(model)


def apply(model: PreTrainedModel, folder: Path, tensors: Mapping[str, Tensor], *, with_head: bool) -> None:
    """Merge a stored adapter into its base, in place; without its head only the factors."""
    config = peft().LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    config.fan_in_fan_out = _is_turned(model)
    if not with_head:
        config.modules_to_save = None
        tensors = {name: value for name, value in tensors.items() if "lora_" in name}
    tuner = _injected(model, config)
    told = peft().set_peft_model_state_dict(model, dict(tensors))
    if told.unexpected_keys:
        raise ModelError(
            f"{len(told.unexpected_keys)} tensors of the adapter do not fit its base: {told.unexpected_keys[0]}",
            where=str(folder),
            field="model",
        )
    merge(tuner)
    model.requires_grad_(True)


@contextmanager
def _in_4_bits(model: Any) -> Iterator[None]:
    """PEFT looks for layers in 4 bits only in a model that says it has some."""
    has_some = any(nf4.is_quantized(layer) for layer in model.modules())
    try:
        if has_some:
            model.is_loaded_in_4bit = True
        yield
    finally:
        if has_some:
            del model.is_loaded_in_4bit


def _is_turned(model: nn.Module) -> bool:
    """GPT-2 keeps its weights ``(in, out)``."""
    return any(isinstance(layer, Conv1D) for layer in model.modules())


def _task_type(model: Any) -> str | None:
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.can_generate() else None
