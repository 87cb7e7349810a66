"""What is wrong with the files of a checkpoint, or missing for them, in one sentence each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from fulltune.errors import FulltuneError, MissingDependencyError, ModelError

#: Longest name of a file, and longest path, that a file system takes.
_LONGEST_PART, _LONGEST_NAME = 255, 4_000

#: Characters of a message of a library that are repeated.
_SHOWN = 300

_INDEX = "model.safetensors.index.json"

#: How a package is installed that a message of transformers names, by a word of the message; the first match counts.
_PACKAGES = (
    ("gguf", "gguf", 'pip install "fulltune[gguf]"'),
    ("flashattention", "flash-attn", "pip install flash-attn, or remove attn_implementation from config.json"),
    ("flash_attn", "flash-attn", "pip install flash-attn, or remove attn_implementation from config.json"),
    ("sentencepiece", "sentencepiece", "pip install sentencepiece protobuf"),
    ("protobuf", "protobuf", "pip install protobuf"),
    ("tiktoken", "tiktoken", "pip install tiktoken"),
    ("bitsandbytes", "bitsandbytes", 'pip install "fulltune[adapters]"'),
)

#: Heads of transformers by what they are for, in the words of an error.
_HEADS = {
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question-answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "multiple-choice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
}


def check_name(name: str) -> None:
    """Check that a model's name can be one.

    Raises:
        ModelError: It is empty, too long for any file system or hub, or has control characters.
    """
    if not name.strip():
        found = "an empty name"
    elif len(name.encode()) > _LONGEST_NAME or any(len(part.encode()) > _LONGEST_PART for part in name.split("/")):
        found = f"a name of {len(name):,} characters ({name[:40]}…)"
    elif any(ord(character) < 32 or ord(character) == 127 for character in name):
        found = f"control characters in {name[:100]!r}"
    else:
        return
    raise ModelError(found, expected="a folder, a hub id, a run or a registered model", field="model")


def check_files(name: str, folder: Path) -> None:
    """Check the weights of a folder, without reading them: all shards are safetensors files of that folder, and whole
    files, not pointers to them.

    Raises:
        ModelError: They are not.
    """
    shards = _shards(name, folder)
    outside = sorted(shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors"))
    if outside:
        raise ModelError(
            f"{_INDEX} of {name!r} points at {', '.join(map(repr, outside[:3]))}",
            expected="safetensors files of the same folder",
            fix="do not use this checkpoint: pickled or foreign files can run code",
            field="model",
        )
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(shards)} shards of {name!r} are missing: {', '.join(missing[:3])}",
            expected=f"every file that {_INDEX} names",
            fix="download the checkpoint again",
            field="model",
        )
    pointers = [path.name for path in sorted(folder.glob("*.safetensors")) if _is_pointer(path)]
    if pointers:
        raise ModelError(
            f"{', '.join(pointers[:3])} of {name!r} is a pointer of git-lfs, not the file",
            expected="the weights themselves",
            fix="run `git lfs pull` in the folder",
            field="model",
        )
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name!r} has pickled weights only ({', '.join(pickled[:3])})",
            expected="safetensors, which cannot run code",
            fix="load it where you trust it and call save_pretrained",
            field="model",
        )


def _shards(name: str, folder: Path) -> list[str]:
    path = folder / _INDEX
    if not path.is_file():
        return []
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return sorted({str(shard) for shard in index["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{_INDEX} of {name!r} cannot be read ({type(error).__name__}: {error})",
            expected="a JSON object with a weight_map",
            fix="download the checkpoint again",
            field="model",
        ) from error


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


def check_config(name: str, config: PretrainedConfig, head: str | None) -> None:
    """Check that this kind of model can be loaded in float32 with this head.

    Args:
        name: As the user gave it.
        config: The checkpoint's.
        head: What it is for (``causal-lm``, ``classification``, …); None where the body alone will do.

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
            fix="name the model that it was quantized from; `method: qlora` quantizes that one itself",
            field="model",
        )
    if head is None:
        _check_type(name, config)
    if head is None or config.model_type in _HEADS[head]:
        return
    known = [title for title, types in _HEADS.items() if config.model_type in types]
    raise ModelError(
        f"transformers has no {head} head for {config.model_type}",
        expected=f"a task that it has one for ({', '.join(known)})" if known else "a model of text",
        fix="choose another model or another task",
        field="model",
    )


def _check_type(name: str, config: PretrainedConfig) -> None:
    """Check that transformers loads this model type by itself; the parts of some models (Emu3's text) it does not.

    Raises:
        ModelError: It does not.
    """
    own = config.model_type
    if own in modeling_auto.MODEL_MAPPING_NAMES or own in _HEADS["masked-lm"]:
        return
    wholes = [known for types in _HEADS.values() for known in types if own.startswith(f"{known}_")]
    whole = max(wholes, key=len, default=None)
    heads = [title for title, types in _HEADS.items() if whole in types]
    raise ModelError(
        f"{name!r} is of the type {own!r}, which transformers does not load by itself",
        expected=f"the whole model, of the type {whole!r} (transformers has a head of it for {', '.join(heads)})"
        if whole
        else "a type that transformers has a model for",
        fix="choose another model",
        field="model",
    )


def check_body(name: str, model: PreTrainedModel, fresh: Set[str]) -> None:
    """Check that a checkpoint holds the body of the model that was loaded from it; a new head is no fault.

    Args:
        name: As the user gave it.
        model: Loaded; ``base_model`` is its body.
        fresh: Names of the parameters that the checkpoint lacks, which have random values.

    Raises:
        ModelError: It lacks a whole layer of the body, or more than half of the body's weights.
    """
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    weights = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    lacking = weights & fresh
    whole = [layer for layer in _layers(model) if layer <= lacking]
    if not whole and 2 * len(lacking) <= len(weights):
        return
    raise ModelError(
        f"{len(lacking)} of {len(weights)} body weights of {type(model).__name__} are not in the checkpoint {name!r} "
        f"({', '.join(sorted(lacking)[:2])}, …): they would be random",
        expected="a checkpoint of the whole body; only a head may be new",
        fix="choose a task that this checkpoint was made for, or the checkpoint that it was cut from",
        field="model",
    )


def _layers(model: nn.Module) -> list[set[str]]:
    """Return the names of the parameters of each element of each list of modules, empty elements left out."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    layers = [
        {f"{name}.{place}.{one}" for one, _ in layer.named_parameters()}
        for name, module in lists
        for place, layer in enumerate(module)
    ]
    return [layer for layer in layers if layer]


@contextmanager
def errors_of(name: str, folder: Path) -> Iterator[None]:
    """Turn what the libraries raise over a broken checkpoint into one message of ours."""
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
    """Name the package that a message of a library asks for."""
    words = message.lower()
    known = next(((package, fix) for word, package, fix in _PACKAGES if word in words), None)
    if known is None:
        advised = re.search(r"pip install (?:-U )?[\"']?([\w.\-\[\]<>=]+)", message)
        package = advised.group(1) if advised else ""
        known = (package or "a package", f"pip install {package}" if package else "see the message")
    package, fix = known
    return MissingDependencyError(
        f"{name!r} needs {package}, which is not installed ({_first_line(message)})", fix=fix, field="model"
    )


def _unreadable(name: str, folder: Path, error: Exception) -> FulltuneError:
    message = str(error)
    if "backend tokenizer" in message or "slow tokenizer" in message:
        return _no_tokenizer(name, folder)
    if "custom code" in message or "trust_remote_code" in message:
        return ModelError(
            f"{name!r} brings code of its own, which is never run",
            expected="a model type that transformers has",
            fix="choose another checkpoint",
            field="model",
        )
    return ModelError(
        f"{name!r} could not be loaded ({_first_line(message) or type(error).__name__})",
        expected="a Hugging Face checkpoint with safetensors weights and a tokenizer",
        fix="check that the files are whole; convert pickled weights with save_pretrained first",
        field="model",
    )


def _no_tokenizer(name: str, folder: Path) -> FulltuneError:
    """Say why a tokenizer cannot be made: its files are missing, or a package that reads them."""
    pieces = [path.name for ending in ("*.model", "*.spm") for path in sorted(folder.glob(ending))]
    ranks = [path.name for path in sorted(folder.glob("*.tiktoken"))]
    if pieces or ranks:
        return _missing_package(name, f"{'sentencepiece' if pieces else 'tiktoken'} reads {(pieces + ranks)[0]}")
    return ModelError(
        f"{name!r} has no tokenizer",
        expected="tokenizer.json, or the files that its tokenizer class reads",
        fix="save the tokenizer of the model into its folder",
        field="model",
    )


def _first_line(message: str) -> str:
    line = next((part.strip() for part in message.splitlines() if part.strip()), "")
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
