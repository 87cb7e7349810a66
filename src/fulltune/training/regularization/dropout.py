"""One dropout for a whole model: layers, attention weights, and the numbers that models keep for themselves."""

from __future__ import annotations

import logging
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig, PreTrainedModel

from fulltune.errors import ConfigError

_log = logging.getLogger(__name__)


def set_dropout(model: PreTrainedModel, probability: float) -> int:
    """Set every dropout of a model, that of attention weights included; LayerDrop, which drops whole layers, stays.

    A model computes dropout by modules, by functions with a number that a module keeps, or with one read from the
    config; all three are set. The config goes with the saved model, and so tells how it was trained.

    Returns:
        How many places in the model were set.

    Raises:
        ConfigError: The model has no dropout.
    """
    places = sum(_set_module(module, probability) for module in model.modules())
    found = _set_config(model.config, probability)
    if not places + found:
        raise ConfigError(
            f"{type(model).__name__} has no dropout",
            expected="a model with dropout layers",
            fix="leave regularize.dropout out",
            field="regularize.dropout",
        )
    return places


def _set_module(module: nn.Module, probability: float) -> int:
    if isinstance(module, _DropoutNd):
        module.p = probability
        return 1
    names = [name for name, value in vars(module).items() if _is_probability(name, value)]
    for name in names:
        setattr(module, name, probability)
    return len(names)


def _set_config(config: PretrainedConfig, probability: float) -> int:
    found = 0
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            found += _set_config(value, probability)
        elif _is_probability(name, value):
            _set_field(config, name, probability)
            found += 1
    return found


def _set_field(config: PretrainedConfig, name: str, probability: float) -> None:
    """Set a field of a config, as an integer where its type demands one (MPT's ``attn_pdrop``)."""
    values = (probability, int(probability)) if probability == int(probability) else (probability,)
    for value in values:
        try:
            setattr(config, name, value)
            return
        except StrictDataclassFieldValidationError:
            continue
    _log.warning("%s.%s takes no %s: set in the model, not in its config", type(config).__name__, name, probability)


def _is_probability(name: str, value: Any) -> bool:
    """``attention_dropout``, ``resid_pdrop``, ``hidden_dropout_prob``, ``dropout_rate``, …, but not ``layerdrop``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and ("dropout" in name or name.endswith("pdrop"))
