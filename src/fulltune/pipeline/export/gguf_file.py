"""Write decoders as GGUF files for llama.cpp and its relatives: 16-bit floats, or blocks of 8-bit integers.

The layout of tensors and the keys are those of the format's own package; transformers reads the file back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fulltune.errors import ModelError
from fulltune.models.bundle import Bundle
from fulltune.models.tokenizing import frame
from fulltune.pipeline.export.graphs import write_settings

#: Model types, and their names in the format.
ARCHITECTURES = {"gpt2": "GPT2", "llama": "LLAMA", "qwen2": "QWEN2"}

#: Name of the file in a folder.
FILE = "model.gguf"

#: Weights per block of Q8_0; a row must be divisible by it.
_BLOCK = 32

#: Parts of a pre-tokenizer's definition, and its name in llama.cpp; the first that fits.
_SPLITTERS = (
    ('"individual_digits": true', "smollm"),
    (r"\\p{N}{1,3}", "llama-bpe"),
    (r"|\\p{N}|", "qwen2"),
    ('"use_regex": true', "gpt-2"),
)


def write_gguf(bundle: Bundle, folder: Path, kind: str) -> None:
    """Write a decoder as ``model.gguf``, with its config and tokenizer next to it.

    Args:
        bundle: A decoder of the types in :data:`ARCHITECTURES` with a byte-level BPE tokenizer.
        folder: An empty folder.
        kind: ``F16`` or ``Q8_0``.

    Raises:
        ModelError: The type of the model or of its tokenizer is not supported.
    """
    import gguf

    config = bundle.model.config
    _check(bundle)
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture])
    _add_settings(writer, bundle, gguf.LlamaFileType[f"MOSTLY_{kind}"])
    _add_tokenizer(writer, bundle, gguf.TokenType)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, values in _tensors(bundle):
        inner = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if inner is None:
            raise _unsupported(bundle, f"a tensor {name}")
        form = _form(inner, values, kind)
        if form == "F32":
            writer.add_tensor(inner, values)
        else:
            number_type = gguf.GGMLQuantizationType[form]
            writer.add_tensor(inner, gguf.quants.quantize(values, number_type), raw_dtype=number_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_settings(bundle, folder)


def _check(bundle: Bundle) -> None:
    """Check that the format has a place for all of the model.

    Raises:
        ModelError: It does not.
    """
    config = bundle.model.config
    if bundle.head != "lm" or config.model_type not in ARCHITECTURES:
        raise _unsupported(bundle, f"a {config.model_type} with the head {bundle.head}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise _unsupported(bundle, f"positions of the type {rope['rope_type']}")
    if _splitter(bundle) is None:
        raise _unsupported(
            bundle, f"a tokenizer of the type {type(bundle.tokenizer).__name__} that is no byte-level BPE"
        )


def _unsupported(bundle: Bundle, what: str) -> ModelError:
    return ModelError(
        f"{type(bundle.model).__name__} has no exporter to GGUF: {what}",
        expected=f"a decoder of the type {', '.join(ARCHITECTURES)} with a byte-level BPE tokenizer",
        fix="choose the format onnx or safetensors-bf16",
        field="MODEL",
    )


# ---- Weights ----


def _tensors(bundle: Bundle) -> Iterator[tuple[str, Any]]:
    """Yield the weights in the layout of the format; tied ones once."""
    model: Any = bundle.model
    turn = _turn(model)
    for name, value in model.named_parameters():
        values = np.ascontiguousarray(turn(name, value.detach().float().cpu().numpy()))
        yield name, values


def _turn(model: Any) -> Callable[[str, Any], Any]:
    """Return a function from name and values of a weight to its values in the layout of the format."""
    config = model.config
    if config.model_type == "gpt2":
        # Layers of GPT-2 store (inputs, outputs); the format stores (outputs, inputs).
        turned = {f"{name}.weight" for name, layer in model.named_modules() if type(layer).__name__ == "Conv1D"}
        return lambda name, values: values.T if name in turned else values
    if config.model_type != "llama":
        return lambda name, values: values
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def with_pairs(name: str, values: Any) -> Any:
        """Interleave both halves of each head: the format rotates neighbors, transformers rotates halves."""
        count = next((number for layer, number in heads.items() if f".{layer}." in name), None)
        if count is None:
            return values
        halves = values.reshape(count, 2, len(values) // count // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)

    return with_pairs


def _form(name: str, values: Any, kind: str) -> str:
    """Return the number type of a tensor: vectors and positions stay in float32."""
    if values.ndim < 2 or name.startswith("position_embd"):
        return "F32"
    return kind if kind == "F16" or values.shape[-1] % _BLOCK == 0 else "F16"


# ---- Settings and tokenizer ----


def _add_settings(writer: Any, bundle: Bundle, file_type: int) -> None:
    config: Any = bundle.model.config
    writer.add_name(bundle.info.architecture)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _add_tokenizer(writer: Any, bundle: Bundle, types: Any) -> None:
    tokenizer: Any = bundle.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {index: name for name, index in tokenizer.get_vocab().items()}
    added = {token["id"]: token for token in state["added_tokens"]}
    tokens, kinds = list[str](), list[int]()
    for index in range(bundle.model.config.vocab_size):
        tokens.append(names.get(index, f"[PAD{index}]"))
        if index not in names:
            kinds.append(types.UNUSED)
        elif index in added:
            kinds.append(types.CONTROL if added[index]["special"] else types.USER_DEFINED)
        else:
            kinds.append(types.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitter(bundle))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    if merges:
        writer.add_token_merges(merges)
    for role in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None:
            getattr(writer, f"add_{role}_token_id")(index)
    before, after = frame(tokenizer)
    writer.add_add_bos_token(_is_one(before, tokenizer.bos_token_id))
    writer.add_add_eos_token(_is_one(after, tokenizer.eos_token_id))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _is_one(ids: Sequence[int], token: int | None) -> bool:
    return token is not None and list(ids) == [token]


def _splitter(bundle: Bundle) -> str | None:
    """Return llama.cpp's name for how a byte-level BPE tokenizer splits a text; None for another tokenizer."""
    backend = getattr(bundle.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    definition = json.dumps(state.get("pre_tokenizer"))
    if state["model"]["type"] != "BPE" or '"ByteLevel"' not in definition:
        return None
    return next((name for part, name in _SPLITTERS if part in definition), None)
