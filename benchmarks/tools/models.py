"""Models of three families and three sizes with random weights, as folders that a config can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fulltune.models.bundle import quiet
from fulltune.models.load import load

#: Width, layers and heads.
SIZES = {"tiny": (128, 2, 2), "small": (384, 6, 6), "base": (768, 12, 12)}

KINDS = tuple(f"{family}-{size}" for family in ("bert", "gpt2", "t5") for size in SIZES)


def make(kind: str, seed: int = 17) -> PreTrainedModel:
    """Return one of :data:`KINDS`; its vocabulary is that of the published model."""
    family, _, size = kind.partition("-")
    width, layers, heads = SIZES[size]
    torch.manual_seed(seed)
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=heads))
    if family == "bert":
        shape: dict[str, Any] = {"num_hidden_layers": layers, "num_attention_heads": heads}
        return BertForMaskedLM(BertConfig(hidden_size=width, intermediate_size=4 * width, **shape))
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    shape = {"num_layers": layers, "num_heads": heads, "d_kv": width // heads, "d_ff": 4 * width}
    return T5ForConditionalGeneration(T5Config(d_model=width, vocab_size=32128, **shape, **special))


def write(kind: str, folder: Path) -> None:
    """Save a model with the starter's tokenizer, to which a mask token is added for BERT."""
    tokenizer = load("starter:gpt2").tokenizer
    if kind.startswith("bert"):
        tokenizer.add_special_tokens({"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"})
    with quiet():
        make(kind).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
