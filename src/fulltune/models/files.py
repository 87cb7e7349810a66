"""Check the files of a checkpoint, and turn errors of libraries into clear messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from fulltune.errors import FulltuneError, MissingDependencyError, ModelError
from fulltune.runtime import extras

#: Maximum number of characters that are quoted from a message of a library.
_SHOWN = 300

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"

#: Patterns of other files with weights.
_OTHER_WEIGHTS = ("*.safetensors", "*.onnx", "onnx/*.onnx", "*.h5", "*.msgpack", "*.pt", "*.pth", "*.ckpt", "*.mlmodel")

#: Files of a checkpoint that transformers reads as JSON objects.
_JSON_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "vocab.json"),
)

#: Word in a message of transformers, missing package, and how to install it or the extra that has it; the first match
#: is used.
_PACKAGES = (
    ("gguf", "gguf", "[gguf]"),
    ("flashattention", "flash-attn", "pip install flash-attn, or remove attn_implementation from config.json"),
    ("flash_attn", "flash-attn", "pip install flash-attn, or remove attn_implementation from config.json"),
    ("sentencepiece", "sentencepiece", "pip install sentencepiece protobuf"),
    ("protobuf", "protobuf", "pip install protobuf"),
    ("tiktoken", "tiktoken", "pip install tiktoken"),
    ("bitsandbytes", "bitsandbytes", "[adapters]"),
)

#: Model types with a head, by the name of the head in messages.
_HEADS = {
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question-answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "multiple-choice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
}


def check_files(name: str, folder: Path) -> None:
    """Check the weights in a folder without reading them.

    Raises:
        ModelError: Weights are missing, are outside the folder, are git-lfs pointers, or are not safetensors files.
    """
    shards = _shards(name, folder)
    outside = sorted(shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors"))
    if outside:
        raise ModelError(
            f"{_INDEX} of {name!r} points at {', '.join(map(repr, outside[:3]))}",
            expected="safetensors files of the same folder",
            fix="do not use this checkpoint: files in other formats or places can run code",
            field="model",
        )
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(shards)} shards of {name!r} are missing: {', '.join(missing[:3])}",
            expected=f"every file in {_INDEX}",
            fix="download the checkpoint again",
            field="model",
        )
    pointers = [path.name for path in sorted(folder.glob("*.safetensors")) if _is_pointer(path)]
    if pointers:
        raise ModelError(
            f"{', '.join(pointers[:3])} of {name!r} is a git-lfs pointer",
            expected="the file with the weights",
            fix="run `git lfs pull` in the folder",
            field="model",
        )
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name!r} has pickled weights only ({', '.join(pickled[:3])})",
            expected="safetensors, which cannot run code",
            fix="if you trust it, load it elsewhere and call save_pretrained",
            field="model",
        )
    if not shards and not (folder / _WEIGHTS).is_file():
        raise _no_weights(name, folder)


def _no_weights(name: str, folder: Path) -> ModelError:
    """Return the error for a folder without weights, which names the files that may contain them."""
    others = sorted(path.name for ending in _OTHER_WEIGHTS for path in folder.glob(ending))
    if (folder / "adapter_config.json").is_file():
        fix = "merge the adapter into its base (merge_and_unload of peft), and call save_pretrained"
    elif not others:
        fix = "download the checkpoint again"
    elif not others[0].endswith(".safetensors"):
        fix = "load it with a tool that reads this format, and save it with save_pretrained of transformers"
    elif any(re.search(r"-of-\d+\.safetensors$", other) for other in others):
        fix = f"download {_INDEX} too"
    else:
        fix = f"rename the file to {_WEIGHTS} if it has the names of transformers"
    has = f", but {', '.join(others[:3])}{' …' if len(others) > 3 else ''}" if others else ""
    return ModelError(
        f"{name!r} has no {_WEIGHTS}{has}",
        expected="the weights of a complete model as save_pretrained writes them",
        fix=fix,
        field="model",
    )


def _shards(name: str, folder: Path) -> list[str]:
    """Return the names of all shards in the index; empty if there is no index.

    Raises:
        ModelError: The index cannot be read.
    """
    path = folder / _INDEX
    if not path.is_file():
        return []
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return sorted({str(shard) for shard in index["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{_INDEX} of {name!r} cannot be read ({type(error).__name__}: {error})",
            expected="a JSON object with a weight_map",
            fix="download the checkpoint again",
            field="model",
        ) from error


def _is_pointer(path: Path) -> bool:
    """Return whether a file is a git-lfs pointer."""
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


def check_config(name: str, config: PretrainedConfig, head: str | None) -> None:
    """Check that a model can be loaded in float32 with a head.

    Args:
        name: Name of the model as the user gave it.
        config: Config of the checkpoint.
        head: Name of the head (``causal-lm``, ``classification``, …); None if the body is sufficient.

    Raises:
        ModelError: The weights are quantized, or transformers has no such head for the model type.
    """
    quantized: Any = getattr(config, "quantization_config", None)
    if quantized:
        values = quantized if isinstance(quantized, dict) else quantized.to_dict()
        method = getattr(values.get("quant_method"), "value", values.get("quant_method")) or "unknown"
        raise ModelError(
            f"{name!r} is quantized ({method}): rounded weights cannot be trained in full",
            expected="a checkpoint in float32, float16 or bfloat16",
            fix="use the model that it was quantized from; `method: qlora` quantizes it",
            field="model",
        )
    if head is None:
        _check_type(name, config)
    if head is None or config.model_type in _HEADS[head]:
        return
    available = [title for title, types in _HEADS.items() if config.model_type in types]
    raise ModelError(
        f"transformers has no {head} head for {config.model_type}",
        expected=f"a task for one of its heads ({', '.join(available)})" if available else "a text model",
        fix="choose another model or another task",
        field="model",
    )


def _check_type(name: str, config: PretrainedConfig) -> None:
    """Check that transformers can load this model type on its own, unlike some submodels (Emu3's text model).

    Raises:
        ModelError: It cannot.
    """
    own = config.model_type
    if own in modeling_auto.MODEL_MAPPING_NAMES or own in _HEADS["masked-lm"]:
        return
    parents = [parent for types in _HEADS.values() for parent in types if own.startswith(f"{parent}_")]
    parent = max(parents, key=len, default=None)
    heads = [title for title, types in _HEADS.items() if parent in types]
    expected = "a model type of transformers"
    if parent:
        expected = f"the complete model, of the type {parent!r} (transformers has these heads: {', '.join(heads)})"
    raise ModelError(
        f"{name!r} is of the type {own!r}, which transformers cannot load on its own",
        expected=expected,
        fix="choose another model",
        field="model",
    )


@contextmanager
def errors_of(name: str, folder: Path) -> Iterator[None]:
    """Turn errors of libraries about a broken checkpoint in the block into a :class:`FulltuneError`."""
    try:
        yield
    except FulltuneError:
        raise
    except ImportError as error:
        raise _missing_package(name, str(error)) from error
    except (
        *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError),
        *(SafetensorError, StrictDataclassError),
    ) as error:
        raise _unreadable(name, folder, error) from error


def _missing_package(name: str, message: str) -> MissingDependencyError:
    """Return the error for a package that a message of a library asks for."""
    package, fix = _package(message)
    return MissingDependencyError(
        f"{name!r} needs {package}, which is not installed ({_first_line(message)})", fix=fix, field="model"
    )


def _package(message: str) -> tuple[str, str]:
    """Return the package that a message asks for, and how to install it."""
    lowered = message.lower()
    for word, package, fix in _PACKAGES:
        if word in lowered:
            return package, extras.install(fix.strip("[]")) if fix.startswith("[") else fix
    match = re.search(r"pip install (?:-U )?[\"']?([\w.\-\[\]<>=]+)", message)
    if match is None:
        return "a package", "see the message"
    return match.group(1), f"pip install {match.group(1)}"


def _unreadable(name: str, folder: Path, error: Exception) -> FulltuneError:
    """Return the error for a checkpoint that cannot be loaded."""
    message = str(error)
    if "backend tokenizer" in message or "slow tokenizer" in message:
        return _no_tokenizer(name, folder)
    if "custom code" in message or "trust_remote_code" in message:
        return ModelError(
            f"{name!r} needs its own code, which is never run",
            expected="a model type of transformers",
            fix="choose another checkpoint",
            field="model",
        )
    broken = next(filter(None, (_broken_json(folder / file) for file in _JSON_FILES)), "")
    if broken:
        return ModelError(
            f"{broken} of {name!r}",
            expected="a JSON object in UTF-8",
            fix="download the file again, or correct it",
            field="model",
        )
    if isinstance(error, KeyError) and (fields := _fields_with(folder, error.args[0])):
        message = f"transformers does not know {error.args[0]!r}, the value of {' and '.join(fields)} in config.json"
    return ModelError(
        f"{name!r} could not be loaded ({_first_line(message) or type(error).__name__})",
        expected="a Hugging Face checkpoint with safetensors weights and a tokenizer",
        fix="check that the files are complete; convert pickled weights with save_pretrained first",
        field="model",
    )


def _broken_json(path: Path) -> str:
    """Return why a file is not a JSON object, or an empty string; also if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, RecursionError) as error:
        return f"{path.name} is not valid JSON ({_first_line(str(error)) or type(error).__name__})"
    return "" if isinstance(value, dict) else f"{path.name} is not a JSON object (but a {type(value).__name__})"


def _fields_with(folder: Path, value: Any) -> list[str]:
    """Return the dotted names of the fields of config.json that have this value."""

    def search(fields: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, own in fields.items():
            if isinstance(own, dict):
                yield from search(own, f"{prefix}{name}.")
            elif own == value and type(own) is type(value):
                yield f"{prefix}{name}"

    try:
        return list(search(json.loads((folder / "config.json").read_text(encoding="utf-8")), ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return []


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, folder: Path) -> None:
    """Check that a tokenizer knows text: without its files, transformers returns one with special tokens alone.

    Raises:
        ModelError: It has no vocabulary.
        MissingDependencyError: The package that reads its vocabulary is not installed.
    """
    # T5's has the mark of a word's beginning all the same.
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) < 2:
        raise _no_tokenizer(name, folder)


def _no_tokenizer(name: str, folder: Path) -> FulltuneError:
    """Return the error for a tokenizer whose files are missing, or the package that reads them."""
    pieces = [path.name for ending in ("*.model", "*.spm") for path in sorted(folder.glob(ending))]
    ranks = [path.name for path in sorted(folder.glob("*.tiktoken"))]
    if pieces or ranks:
        return _missing_package(name, f"{'sentencepiece' if pieces else 'tiktoken'} reads {(pieces + ranks)[0]}")
    return ModelError(
        f"{name!r} has no tokenizer",
        expected="tokenizer.json, or the files of its tokenizer class",
        fix="save the tokenizer of the model to its folder",
        field="model",
    )


def _first_line(message: str) -> str:
    """Return the first line of a message that is not empty, with the next one if it ends in a colon, shortened."""
    lines = [part.strip() for part in message.splitlines() if part.strip()]
    line = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
