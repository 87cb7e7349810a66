"""Set one dropout probability in all places of a model: layers, attention weights, and attributes of modules."""

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
    """Set every dropout of a model, that of attention weights included, except LayerDrop, which drops complete layers.

    Models compute dropout with modules, with functions whose probability is an attribute of a module, or with a
    probability from the config. All three are set. The config is saved with the model.

    Returns:
        Number of places in the model that were set.

    Raises:
        ConfigError: The model has no dropout.
    """
    places = sum(_set_module(module, probability) for module in model.modules())
    fields = _set_config(model.config, probability)
    if not places + fields:
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
    fields = 0
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            fields += _set_config(value, probability)
        elif _is_probability(name, value):
            _set_field(config, name, probability)
            fields += 1
    return fields


def _set_field(config: PretrainedConfig, name: str, probability: float) -> None:
    """Set a field of a config, as an integer if its type requires one (``attn_pdrop`` of MPT)."""
    values = (probability, int(probability)) if probability == int(probability) else (probability,)
    for value in values:
        try:
            setattr(config, name, value)
            return
        except StrictDataclassFieldValidationError:
            continue
    _log.warning(
        "%s.%s does not accept %s: it is set in the model, but not in its config",
        type(config).__name__,
        name,
        probability,
    )


def _is_probability(name: str, value: Any) -> bool:
    """Return True for ``attention_dropout``, ``resid_pdrop``, ``hidden_dropout_prob`` and so on, not ``layerdrop``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and ("dropout" in name or name.endswith("pdrop"))
