"""Two-layer checkpoints with random weights for every model type of transformers that reads and writes text.

Sizes are reduced by field name, layers are kept so that every kind of layer occurs, and windows are 16 tokens: prompts
of the tests are longer than that. The weights are large enough for distant tokens to change the predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    EncoderDecoderConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto import modeling_auto

Head = Literal["causal", "seq2seq", "masked", "classification"]

AUTO: dict[Head, tuple[Any, str]] = {
    "causal": (AutoModelForCausalLM, "CAUSAL_LM"),
    "seq2seq": (AutoModelForSeq2SeqLM, "SEQ_TO_SEQ_CAUSAL_LM"),
    "masked": (AutoModelForMaskedLM, "MASKED_LM"),
    "classification": (AutoModelForSequenceClassification, "SEQUENCE_CLASSIFICATION"),
}

#: Ids of the special tokens; RoBERTa and BART have them in this order.
BOS, PAD, EOS, UNK, MASK = range(5)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127))) + "абвгдежзийклмнопрстуфхцчшщъ"
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
POSITIONS = 512
WINDOW = 16

#: Values by field name, wherever a config or a part of one has the field as a number (or as None, for `OPTIONAL`).
_SIZES: dict[int, str] = {
    1: "n_group topk_group num_expert_group encoder_sparse_step decoder_sparse_step num_nextn_predict_layers "
    "num_shared_experts n_shared_experts moe_num_shared_experts num_random_blocks mamba_n_groups n_groups "
    "max_window_layers num_dense_layers first_k_dense_replace",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_attention_heads num_heads n_head n_heads attention_heads encoder_attention_heads "
    "decoder_attention_heads num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_k "
    "num_blocks swa_num_attention_heads swa_num_key_value_heads linear_num_heads",
    4: "num_experts n_routed_experts num_local_experts moe_num_experts block_size num_selected_experts",
    # With few heads, scores of an indexer are often exactly 0, and which of them are the highest is arbitrary.
    8: "qk_rope_head_dim qk_nope_head_dim index_topk index_n_heads indexer_n_heads local_radius",
    16: "head_dim d_kv v_head_dim qk_head_dim kv_channels attention_head_dim linear_key_head_dim index_head_dim "
    "linear_value_head_dim linear_head_dim mamba_d_head mamba_head_dim swa_head_dim global_head_dim d_head "
    "sliding_window sliding_window_size attention_window attention_chunk_size local_attention window_size "
    "local_attention_window_len kv_lora_rank q_lora_rank mamba_d_state state_size ssm_state_size",
    32: "hidden_size d_model n_embd dim emb_dim embedding_size attention_hidden_size lru_width d_embed "
    "word_embed_proj_dim embedding_dim mamba_chunk_size",
    64: "intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff dff d_inner n_inner moe_intermediate_size "
    "shared_expert_intermediate_size ffn_hidden_size hidden_dim intermediate_size_mlp feed_forward_size "
    "moe_shared_expert_intermediate_size dim_ff pooler_hidden_size",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length model_max_length "
    "max_encoder_position_embeddings max_decoder_position_embeddings max_source_positions context_length",
    VOCABULARY: "vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size entity_vocab_size "
    "vocab_size_per_layer_input",
}
_VALUES: dict[str, Any] = {name: size for size, names in _SIZES.items() for name in names.split()} | {
    "initializer_range": 0.2,
    "init_std": 0.2,
    "bos_token_id": BOS,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "unk_token_id": UNK,
    "mask_token_id": MASK,
    "sep_token_id": EOS,
    "cls_token_id": BOS,
    "decoder_start_token_id": EOS,
}
_NO_DROPOUT = ("dropout", "pdrop", "layerdrop", "drop_rate", "router_jitter_noise")

#: Exceptions from the rule, by model type (of the model or of a part). None leaves a field to the config.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"linear_num_heads": 2, "linear_head_dim": 16},
    "bamba": {"mamba_n_heads": 4, "attn_layer_indices": [1]},
    "bert-generation": {"is_decoder": True},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "dbrx": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 1, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": MASK, "pad_token_id": PAD},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_ssm": 64, "mamba_d_head": 16},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16, "laurel_rank": 8},
    "gemma4_text": {"hidden_size_per_layer_input": 16},
    "gemma4_unified_assistant": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "num_local_experts": 4,
        "shared_intermediate_size": 64,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"num_attention_heads": 2, "channel_shrink_ratio": 1, "hidden_size": 48},
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2, "expert_ffn_hidden_size": 64, "moe_topk": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "mimo_v2_flash": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "v_head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2, "num_self_attention_heads": 2},
    "qwen2": {"use_sliding_window": True, "layer_types": None},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 128,
        "split_ngram_parts": 1,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": WINDOW, "num_key_value_heads": 1},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 16,
        "hash_seed": 0,
        "num_buckets": 4,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
    },
    "roc_bert": {"pronunciation_vocab_size": 64, "shape_vocab_size": 64},
    "xlstm": {
        "hidden_size": 128,
        "embedding_dim": 128,
        "num_blocks": 2,
        "chunk_size": 16,
    },  # smaller widths are rounded up to 64
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 32,
        "mamba_dt_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


#: Types whose other parts cannot be made small, and that write no text from text alone.
_LEFT_OUT = {"vibevoice_asr": "writes down speech; its speech tokenizers alone have 680 million parameters"}

#: Checkpoints that share a model type with others but are of a different kind: type, head, and fields.
VARIANTS: dict[str, tuple[str, Head, dict[str, Any]]] = {
    "bart (decoder alone)": ("bart", "causal", {"is_decoder": True, "is_encoder_decoder": False}),
    "bert (as a decoder)": ("bert", "causal", {"is_decoder": True}),
    "mixtral (auxiliary loss)": ("mixtral", "causal", {"output_router_logits": True}),
    "phimoe (auxiliary loss)": ("phimoe", "causal", {"output_router_logits": True}),
    "roberta (as a decoder)": ("roberta", "causal", {"is_decoder": True}),
    "switch_transformers (auxiliary loss)": ("switch_transformers", "seq2seq", {"output_router_logits": True}),
}


@dataclass(frozen=True)
class Checkpoint:
    """A saved base: its folder, its row of the matrix, and the head that it was saved with."""

    folder: Path
    name: str
    head: Head


def model_types() -> dict[str, tuple[Head, ...]]:
    """Return every model type that has one of the heads of :data:`AUTO`, with those heads."""
    names = {head: getattr(modeling_auto, f"MODEL_FOR_{ending}_MAPPING_NAMES") for head, (_, ending) in AUTO.items()}
    every = sorted(set().union(*names.values()))
    return {name: tuple(head for head in AUTO if name in names[head]) for name in every}


def names() -> list[str]:
    """Return all rows of the matrix: model types and variants."""
    return sorted([*model_types(), *VARIANTS])


def own_head(model_type: str, config: PreTrainedConfig) -> Head:
    """Return the head that a base is saved with: the one that it was pretrained with."""
    heads = model_types()[model_type]
    if config.is_encoder_decoder and "seq2seq" in heads:
        return "seq2seq"
    return next(head for head in ("masked", "causal", "seq2seq", "classification") if head in heads)


def make_config(model_type: str) -> PreTrainedConfig:
    """Return the config of the model type in the size of the tests.

    Raises:
        Exception: Whatever the library raises where the type cannot be built on its own.
    """
    if model_type == "encoder-decoder":
        return EncoderDecoderConfig.from_encoder_decoder_configs(
            make_config("bert"), make_config("bert"), decoder_start_token_id=EOS, pad_token_id=PAD, eos_token_id=EOS
        )
    config = _reduced(CONFIG_MAPPING[model_type]())
    if config.is_encoder_decoder:
        # T5's config has no such field; T5Gemma's own shift of labels begins with the begin token.
        config.decoder_start_token_id = BOS if model_type.startswith("t5gemma") else EOS
    return config


def make_model(config: PreTrainedConfig, head: Head, seed: int = 0) -> PreTrainedModel:
    """Return a model with random weights, the same for the same seed, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AUTO[head][0].from_config(config, dtype=torch.float32).eval()


def make_tokenizer(*, is_decoder: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, so that ids map to characters; others are unknown."""
    names = {name: index for index, name in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    template = "<s> $A" if is_decoder else "<s> $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, names[name]) for name in ("<s>", "</s>")]
    )
    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS - 8,
        **{f"{role}_token": name for role, name in roles.items()},
    )


def save(name: str, folder: Path) -> Checkpoint:
    """Write the checkpoint and the tokenizer of a row of the matrix as ``save_pretrained`` does.

    Raises:
        Exception: Whatever the library raises where the type cannot be built, or cannot read a text alone.
    """
    if name in _LEFT_OUT:
        raise ValueError(_LEFT_OUT[name])
    model_type, head, changes = VARIANTS.get(name, (name, None, {}))
    config = make_config(model_type)
    for field, value in changes.items():
        setattr(config, field, value)
    head = head or own_head(model_type, config)
    if head == "seq2seq" and not config.is_encoder_decoder:
        raise ValueError("writes texts about sounds: its decoder has no head for texts alone")
    model = make_model(config, head)
    _check_forward(model, head)
    model.save_pretrained(folder)
    make_tokenizer(is_decoder=head == "causal").save_pretrained(folder)
    return Checkpoint(folder, name, head)


@torch.no_grad()
def _check_forward(model: PreTrainedModel, head: Head) -> None:
    """Read one short text like plain transformers."""
    ids = torch.arange(PAD + 5, PAD + 5 + 2 * WINDOW)[None]
    ids[0, -1] = EOS
    if head == "seq2seq":
        model(input_ids=ids, decoder_input_ids=ids)
    else:
        model(input_ids=ids)


def _reduced(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the same config with small sizes, no dropout, and a layer of each kind."""
    layers = _layer_count(config)
    kept = _kept_layers(config, layers) if layers else (0, 1)
    values = {name: _reduced_value(name, value, layers, kept) for name, value in vars(config).items()}
    values = {name: value for name, value in values.items() if name in _field_names(config) and value is not _SAME}
    values |= _OVERRIDES.get(config.model_type, {})
    return type(config)(**values)


_SAME = object()


def _field_names(config: PreTrainedConfig) -> frozenset[str]:
    own = frozenset(getattr(type(config), "__dataclass_fields__", {}))
    return own - {"transformers_version", "architectures", "id2label", "label2id", "dtype", "model_type"}


def _reduced_value(name: str, value: Any, layers: int, kept: Sequence[int]) -> Any:
    if isinstance(value, PreTrainedConfig):
        return _reduced(value)
    if isinstance(value, float | int) and not isinstance(value, bool) and any(map(name.__contains__, _NO_DROPOUT)):
        return type(value)(0)
    if isinstance(value, list | tuple) and layers and len(value) == layers:
        return type(value)(value[place] for place in kept)
    if name in _LAYERS and isinstance(value, int):
        return len(kept)
    is_size = isinstance(value, int | float) and not isinstance(value, bool)
    return _VALUES[name] if name in _VALUES and (is_size or name.endswith("_token_id")) else _SAME


_LAYERS = frozenset(_SIZES[2].split()[:8])


def _layer_count(config: PreTrainedConfig) -> int:
    counts = [value for name, value in vars(config).items() if name in _LAYERS and isinstance(value, int)]
    return counts[0] if counts else 0


def _kept_layers(config: PreTrainedConfig, layers: int) -> tuple[int, ...]:
    """Return positions of layers, two at least, so that each kind occurs (by the lists with one value per layer)."""
    lists = [
        value
        for value in vars(config).values()
        if isinstance(value, list | tuple) and len(value) == layers and layers > 1
    ]
    kinds = [tuple(map(str, kind)) for kind in zip(*lists, strict=True)]
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)][:4]
    return tuple(first) if len(first) > 1 else (0, 1)
