"""Sizes of models from their configs alone, built on the meta device, where tensors have a shape and no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    T5Config,
)

from fulltune.config import load_config
from fulltune.models.bundle import family_of
from fulltune.models.sources import find
from fulltune.pipeline.planning.engine_memory import Shape

_LLAMA: dict[str, Any] = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072}

#: Hyper-parameters as their makers publish them: Radford et al. 2019; the model cards of Llama 3.1 and 3.2; Raffel et
#: al. 2020, section 3.7.
PUBLISHED: dict[str, PretrainedConfig] = {
    "GPT-2 XL": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "Llama-3.2-1B": LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        tie_word_embeddings=True,
        **_LLAMA,
    ),
    "Llama-3.2-3B": LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        tie_word_embeddings=True,
        **_LLAMA,
    ),
    "Llama-3.1-8B": LlamaConfig(
        hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32, **_LLAMA
    ),
    "T5-3B": T5Config(d_model=1024, d_kv=128, d_ff=16_384, num_layers=24, num_heads=32),
}

_CLASSES: dict[str, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


def published() -> list[Shape]:
    """Return the shapes of the models in :data:`PUBLISHED`."""
    return [shape_of(name, config) for name, config in PUBLISHED.items()]


def shape_of_config(path: Path) -> Shape:
    """Return the shape of the model that a config names, from its ``config.json`` alone.

    Raises:
        ConfigError, ModelError: The config or the model cannot be read.
    """
    name = load_config(path).model
    return shape_of(name, AutoConfig.from_pretrained(**find(name).kwargs))


def shape_of(name: str, config: PretrainedConfig) -> Shape:
    """Return the shape of a model; no weights are read or created."""
    with torch.device("meta"):
        model = _CLASSES[family_of(config)].from_config(config)
    embedding = model.get_input_embeddings()
    blocks = [list(part) for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) > 1]
    stacks = [stack for stack in blocks if _is_stack(stack, blocks)]
    text: Any = config.get_text_config()
    return Shape(
        name=name,
        parameters=sum(value.numel() for value in model.parameters()),
        block=max(sum(value.numel() for value in block.parameters()) for stack in stacks for block in stack),
        embeddings=sum(value.numel() for value in embedding.parameters()),
        hidden=int(text.hidden_size),
        layers=sum(len(stack) for stack in stacks),
        feed_forward=_feed_forward(text),
        vocabulary=int(text.vocab_size),
    )


def _is_stack(parts: list[Any], others: list[list[Any]]) -> bool:
    """Return whether modules are the blocks of a model, and not parts of one block."""
    inner = {id(part) for other in others if other is not parts for block in other for part in block.modules()}
    return not any(id(part) in inner for part in parts)


def _feed_forward(config: Any) -> int:
    known = (getattr(config, name, None) for name in ("intermediate_size", "d_ff", "n_inner"))
    return int(next((width for width in known if width), 4 * config.hidden_size))
