"""Read the sizes of a model from its files, without torch and without reading its weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune.errors import ModelError
from fulltune.models.sources import ModelFiles

#: Positions of models without a limit, and of those whose files do not tell it.
_WINDOW = 512

#: Values from here on mean no limit.
_NO_LIMIT = 1_000_000

#: Names of one size in the configs of transformers, the usual one first.
_NAMES = {
    "hidden": ("hidden_size", "d_model", "n_embd", "dim"),
    "layers": ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "n_layers"),
    "decoder_layers": ("num_decoder_layers", "decoder_layers"),
    "feed_forward": ("intermediate_size", "d_ff", "n_inner", "encoder_ffn_dim", "ffn_dim", "hidden_dim"),
    "window": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    "vocabulary": ("vocab_size",),
}

#: Longest header of a safetensors file, as the format defines.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class StoredModel:
    """The size of a model in numbers, and its tokenizer.

    Attributes:
        parameters: Numbers in its tensors; tied tensors are stored, and counted, once.
        hidden: Width of the residual stream.
        layers: Blocks, in both stacks if there are two.
        feed_forward: Width of the feed-forward layer.
        vocabulary: Rows of the embeddings.
        window: Longest input in tokens.
        family: ``decoder``, ``encoder`` or ``encoder-decoder``, by the class that the checkpoint was saved from.
        tokenizer: The fast tokenizer, without truncation and padding.
    """

    parameters: int
    hidden: int
    layers: int
    feed_forward: int
    vocabulary: int
    window: int
    family: str
    tokenizer: Any

    @property
    def is_encoder_decoder(self) -> bool:
        return self.family == "encoder-decoder"

    @property
    def start_ids(self) -> list[int]:
        """Ids that the tokenizer puts before a text."""
        [bare], [framed] = self.ids(["a"], special=False), self.ids(["a"])
        place = next((at for at in range(len(framed)) if framed[at : at + len(bare)] == bare), 0)
        return framed[:place]

    def ids(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Return the token ids of each text, with the tokens that the tokenizer puts around them if ``special``."""
        return [encoded.ids for encoded in self.tokenizer.encode_batch(list(texts), add_special_tokens=special)]


def read(source: ModelFiles) -> StoredModel | None:
    """Return the sizes of a model; None if only the library of its files can read them.

    These are GGUF files, adapters, tokenizers without ``tokenizer.json``, and configs with other names for sizes.

    Raises:
        ModelError: A file is damaged.
    """
    folder = source.folder
    if source.gguf or source.is_adapter or not (folder / "tokenizer.json").is_file():
        return None
    config = _json(folder / "config.json")
    config = {**config, **(config.get("text_config") or {})}
    sizes = {name: _size(config, names) for name, names in _NAMES.items()}
    tensors = list(_tensors(folder))
    if not tensors or not all(sizes[name] for name in ("hidden", "layers", "vocabulary")):
        return None
    family = _family(config)
    second = sizes["decoder_layers"] or sizes["layers"]
    return StoredModel(
        parameters=sum(math.prod(shape) for shape in tensors),
        hidden=sizes["hidden"],
        layers=sizes["layers"] + (second if family == "encoder-decoder" else 0),
        feed_forward=sizes["feed_forward"] or 4 * sizes["hidden"],
        vocabulary=sizes["vocabulary"],
        window=_window(folder, sizes["window"]),
        family=family,
        tokenizer=_tokenizer(folder / "tokenizer.json"),
    )


def _family(config: dict[str, Any]) -> str:
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    writes = any("CausalLM" in name or "LMHead" in name for name in config.get("architectures") or ())
    return "decoder" if writes else "encoder"


def _size(config: dict[str, Any], names: Sequence[str]) -> int:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int)), 0)


def _window(folder: Path, positions: int) -> int:
    """Return the smaller one of the limits of the model and of its tokenizer."""
    path = folder / "tokenizer_config.json"
    limit = _json(path).get("model_max_length") if path.is_file() else None
    limits = [value for value in (positions, limit) if isinstance(value, (int, float)) and 0 < value < _NO_LIMIT]
    return int(min(limits, default=_WINDOW))


def _tensors(folder: Path) -> Iterator[list[int]]:
    """Yield the shape of every stored tensor of floating-point numbers, from the headers of the files alone."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST_HEADER + 1
            text = file.read(size) if size <= _LONGEST_HEADER else b""
        header = _parsed(text, path)
        for name, entry in header.items():
            if name != "__metadata__" and str(entry.get("dtype", "")).startswith(("F", "BF")):
                yield entry["shape"]


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_bytes(), path)
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), field="model") from error


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ModelError: It is none.
    """
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        fix = "download the checkpoint again"
        raise ModelError("the file is damaged", expected="a JSON object", where=str(path), fix=fix, field="model")
    return parsed


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        fix = "download the checkpoint again"
        raise ModelError(f"the file is damaged ({error})", where=str(path), fix=fix, field="model") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
