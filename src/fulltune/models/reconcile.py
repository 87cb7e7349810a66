"""Reconcile contradictory or missing settings in a checkpoint's files when it is loaded.

The tokenizer, ``config.json`` and ``generation_config.json`` define special tokens, and any of them may be missing,
wrong or different from the others. Everything after loading (baselines, training, scoring, the saved folder) uses the
reconciled values. Each change is described by one sentence for the log, the record and the report.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from fulltune.errors import ModelError
from fulltune.models.tokenizing import frame

_log = logging.getLogger(__name__)

#: Part of the keys of cached outputs: increase it when the same files are reconciled differently.
VERSION = 2

#: Seed of new embedding rows, so that every load of the same files gives the same model.
_SEED = 0

#: If more rows than this, and more than the model has, are missing, the tokenizer belongs to another model.
_MOST_NEW_ROWS = 65_536

#: Padding token of a classifier whose tokenizer has no special token at all.
_NEW_PAD = "<|pad|>"

#: Tokens that look like control tokens although the tokenizer does not list them as special.
_CONTROL = re.compile(r"<.*>|\[.*\]|\|.*\|", re.DOTALL)

#: Limits from this value on mean no limit.
_NO_LIMIT = 1_000_000

#: Fields of the generation settings that are kept, or that do not affect decoding.
_KEPT = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"}
    | {"forced_eos_token_id", "transformers_version", "use_cache", "_from_model_config"}
)

#: Names of tables of absolute positions in the models of transformers.
_POSITION_TABLES = ("wpe", "position_embeddings", "embed_positions", "position_embedding", "positions_embed")

#: Roles whose token can be used for padding, best first. Classifiers find the last token of a text by the padding id.
_PAD_ROLES = ("eos_token", "unk_token", "bos_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True)
class Reconciled:
    """Result of :func:`reconcile`.

    Attributes:
        changes: One sentence per change.
        grown: Number of rows that were added to the embeddings.
        closing: Ids that the tokenizer no longer puts after a text.
    """

    changes: tuple[str, ...] = ()
    grown: int = 0
    closing: tuple[int, ...] = ()


def config_overrides(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, family: str
) -> tuple[dict[str, Any], list[str]]:
    """Return config fields that must be replaced before the model can be built, and a sentence per field."""
    pad = getattr(config, "pad_token_id", None)
    rows = getattr(config, "vocab_size", None)
    if not isinstance(pad, int) or not isinstance(rows, int) or -rows <= pad < rows:
        return {}, []
    own = tokenizer.pad_token_id
    default = None if family == "decoder" else 0
    used = own if own is not None and own < rows else default
    return {"pad_token_id": used}, [
        f"pad_token_id {pad} of config.json is outside the vocabulary of {rows} tokens: {used} is used"
    ]


def generation_override(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a replacement for a ``generation_config.json`` that transformers rejects, and a sentence."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}, []
    try:
        GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        kept = GenerationConfig(**_stated_ids(path))
        return {"generation_config": kept}, [f"generation_config.json is invalid ({reason}): only its ids are used"]
    return {}, []


def _stated_ids(path: Path) -> dict[str, Any]:
    """Return the token ids in a file of generation settings, as far as it can be read."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(settings, dict):
        return {}
    return {name: value for name, value in settings.items() if name.endswith("_token_id") and _ids(value)}


def reconcile(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: str, *, is_classifier: bool
) -> Reconciled:
    """Reconcile special tokens, embeddings and generation settings of a loaded checkpoint in place.

    Raises:
        ModelError: The tokenizer belongs to another model.
        StrictDataclassError: The config could be loaded, but not saved.
    """
    changes = list[str]()
    changes += _length_limit(tokenizer)
    changes += _disable_tokenizer_settings(tokenizer)
    changes += _token_types(tokenizer, family)
    changes += _outputs(model.config)
    changes += _end_token(model, tokenizer)
    changes += _pad_token(model, tokenizer, is_classifier)
    grown = grow_embeddings(model, tokenizer)
    if grown:
        changes.append(f"the tokenizer has tokens without an embedding: {_rows(grown)} added to the embeddings")
    changes += _pad_id(model, tokenizer, family)
    changes += _start_of_decoder(model, tokenizer)
    changes += _generation(model, tokenizer)
    closing = frame(tokenizer)[1] if family == "decoder" and not is_classifier and tokenizer.is_fast else []
    if closing:
        changes.append(_remove_closing_tokens(tokenizer, closing))
    if family == "encoder-decoder" and is_classifier:
        changes += _ensure_one_end_token(model, tokenizer)
    if validate := getattr(model.config, "validate", None):
        validate()
    for change in changes:
        _log.info("%s: %s", model.name_or_path or type(model).__name__, change)
    return Reconciled(tuple(changes), grown, tuple(closing))


def classifier_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: str, closing: Sequence[int]
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a language model as it would be with a classification head: a copy if it differs.

    Args:
        model: The language model.
        tokenizer: Its reconciled tokenizer.
        family: Family of the model.
        closing: Ids that :func:`reconcile` removed after a text.
    """
    if family != "encoder-decoder" and not closing:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    if family == "encoder-decoder":
        list(_ensure_one_end_token(model, own))  # its sentences are those of the model that is trained
    else:
        _set_frame(own, frame(own)[0], list(closing))
    return own


def input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    """Return the token embeddings of a model; None if it has none (CANINE hashes characters)."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def embedding_rows(model: PreTrainedModel) -> int | None:
    """Return the number of token embeddings; None if the model has no embedding table."""
    embeddings: Any = input_embeddings(model)
    weight = getattr(embeddings, "weight", None)
    return int(weight.shape[0]) if isinstance(embeddings, nn.Embedding) and weight is not None else None


# ---- Tokens and embeddings ----


def _rows(count: int) -> str:
    return "1 row was" if count == 1 else f"{count} rows were"


def grow_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Add embedding rows for tokens that the model lacks, and return their number; rows are never removed.

    Raises:
        ModelError: Too many rows are missing: the tokenizer belongs to another model.
    """
    rows = embedding_rows(model)
    if rows is None:
        return 0
    required = _vocabulary_size(tokenizer)
    missing = required - rows
    if missing <= 0:
        return 0
    if missing > max(_MOST_NEW_ROWS, rows):
        raise ModelError(
            f"the tokenizer has ids up to {required - 1:,}, the model embeddings for {rows:,} tokens",
            expected="the tokenizer that the model was trained with",
            fix="put the model's own tokenizer files into its folder",
            field="model",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model.resize_token_embeddings(required)
    return missing


def _vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than the largest token id of a tokenizer, or its length if that is larger."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


def _length_limit(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Make the length limit of a tokenizer a number."""
    stated: Any = tokenizer.model_max_length
    if isinstance(stated, int | float):
        return
    limit = int(stated) if isinstance(stated, str) and stated.isdecimal() else int(VERY_LARGE_INTEGER)
    tokenizer.model_max_length = limit
    used = f"it is read as {limit}" if limit < _NO_LIMIT else "it is not used"
    yield f"model_max_length of the tokenizer is {stated!r}, which is no number: {used}"


def _token_types(tokenizer: PreTrainedTokenizerBase, family: str) -> Iterator[str]:
    """Keep a tokenizer from returning token types that change a model's answers.

    No input here has them. GPT-2 would read them as further tokens.
    """
    name = "token_type_ids"
    if name not in tokenizer.model_input_names:
        return
    if family == "encoder" and not any(tokenizer("a", return_token_type_ids=True).token_type_ids):
        return  # zeros, which an encoder assumes without them
    tokenizer.model_input_names = [other for other in tokenizer.model_input_names if other != name]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # so that it is saved
    yield f"the tokenizer returns {name}, which change the answers: this is disabled, since rows have none"


def _outputs(config: PretrainedConfig) -> Iterator[str]:
    """Remove requests for further outputs: no answer needs them, and with some kernels the config cannot be saved."""
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name, False):
            setattr(config, name, False)
            yield f"{name} of config.json is disabled: no answer needs these outputs"


def _disable_tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Disable truncation, padding and dropout that are configured in ``tokenizer.json``."""
    if not tokenizer.is_fast:
        return
    backend: Any = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        limit = backend.truncation["max_length"]
        backend.no_truncation()
        yield f"tokenizer.json truncates texts to {limit} tokens: this is disabled, data.max_length applies"
    if backend.padding is not None:
        backend.no_padding()
    if getattr(backend.model, "dropout", None):
        yield f"tokenizer.json splits words at random (dropout {backend.model.dropout:g}): this is disabled"
        backend.model.dropout = None


def _end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Set the end token of a tokenizer that has none to that of the model's settings."""
    if tokenizer.eos_token is not None or not model.can_generate():
        return
    for token in _ids(_generation_value(model, "eos_token_id")):
        text = _text_of(tokenizer, token)
        if text is not None and _is_control(tokenizer, text):
            tokenizer.eos_token = text
            yield f"the tokenizer has no end token: {text!r} of the generation settings is used"
            return


def _pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, is_classifier: bool) -> Iterator[str]:
    """Set the padding token of a tokenizer that has none to another special token.

    Padding is masked by length, never by id. But a classifier on a decoder finds the last token of a text by the
    padding id, so it needs one, and a classifier on an encoder-decoder counts end tokens, so it needs a different one.
    """
    if tokenizer.pad_token is not None:
        return
    counts_ends = is_classifier and model.config.is_encoder_decoder
    roles = _PAD_ROLES[1:] if counts_ends else _PAD_ROLES
    tokens = (getattr(tokenizer, role, None) for role in roles)
    chosen = next((token for token in tokens if token is not None), None)
    if chosen is None and not is_classifier:
        return
    if chosen is None:
        tokenizer.add_special_tokens({"pad_token": _NEW_PAD})
        yield f"the tokenizer has no special token at all: {_NEW_PAD!r} was added for padding"
        return
    tokenizer.pad_token = chosen
    yield f"the tokenizer has no padding token: {str(chosen)!r} is used, and padding is masked by length"


def _pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: str) -> Iterator[str]:
    """Set the model's padding id to the tokenizer's, unless the model's id is valid and determines its positions."""
    config = model.config
    own = tokenizer.pad_token_id
    before = getattr(config, "pad_token_id", None)
    rows = embedding_rows(model)
    is_valid = isinstance(before, int) and (rows is None or 0 <= before < rows)
    if own is None or own == before or (is_valid and family != "decoder"):
        return
    config.pad_token_id = own
    if before is not None:
        yield f"pad_token_id of config.json is {before}, the tokenizer's is {own}: {own} is used"


def _is_control(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return text in tokenizer.all_special_tokens or bool(_CONTROL.fullmatch(text))


def _text_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str | None:
    """Return the text of a token id; None if it is outside the vocabulary."""
    if not 0 <= token < _vocabulary_size(tokenizer):
        return None
    text = tokenizer.convert_ids_to_tokens(token)
    return text if isinstance(text, str) else None


# ---- Special tokens around a text ----


def _remove_closing_tokens(tokenizer: PreTrainedTokenizerBase, closing: Sequence[int]) -> str:
    """Keep a decoder's tokenizer from adding tokens after a text: the model would continue after the end token."""
    before, _ = frame(tokenizer)
    if getattr(tokenizer, "add_eos_token", False):
        tokenizer.add_eos_token = False
    _set_frame(tokenizer, before, [])
    tokens = " ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in closing)
    return f"the tokenizer adds {tokens} after every text: this is disabled, since a decoder continues its prompt"


def _ensure_one_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Make every text end with exactly one end token: an encoder-decoder's head reads the hidden state there."""
    tokenizer.split_special_tokens = True  # a text that contains the end token must not have two
    tokenizer.init_kwargs["split_special_tokens"] = True  # so that it is saved
    end: Any = model.config.eos_token_id
    before, after = frame(tokenizer)
    if end is None or end in after or not tokenizer.is_fast:
        return
    _set_frame(tokenizer, before, [*after, end])
    token = tokenizer.convert_ids_to_tokens(end)
    yield f"the tokenizer does not add {token} after a text, which the head requires: it is added"


def _set_frame(tokenizer: PreTrainedTokenizerBase, before: list[int], after: list[int]) -> None:
    """Make a fast tokenizer add these ids before and after every text; the texts of a pair are not separated."""
    opening = [str(tokenizer.convert_ids_to_tokens(token)) for token in before]
    closing = [str(tokenizer.convert_ids_to_tokens(token)) for token in after]
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join([*opening, "$A", *closing]),
        pair=" ".join([*opening, "$A", *closing, "$B:1", *closing]),
        special_tokens=list(dict(zip([*opening, *closing], [*before, *after], strict=True)).items()),
    )


# ---- Generation ----


def _ids(value: Any) -> list[int]:
    """Return the integers of a value that may be one id, a list of ids, or None."""
    values = value if isinstance(value, list) else [value]
    return [int(item) for item in values if isinstance(item, int)]


def _generation_value(model: PreTrainedModel, name: str) -> Any:
    """Return a field of ``generation_config``, else of the model's config."""
    value = getattr(getattr(model, "generation_config", None), name, None)
    return getattr(model.config, name, None) if value is None else value


def _start_of_decoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Set the decoder start token of an encoder-decoder in both the config (training) and the generation settings."""
    if not model.config.is_encoder_decoder:
        return
    name = "decoder_start_token_id"
    rows = _decoder_rows(model)
    in_generation = getattr(getattr(model, "generation_config", None), name, None)
    in_config = getattr(model.config, name, None)
    fallbacks = (
        getattr(type(model.config), name, None),
        tokenizer.bos_token_id,
        tokenizer.cls_token_id,
        model.config.pad_token_id,
        tokenizer.eos_token_id,
    )
    valid = (value for value in (in_generation, in_config, *fallbacks) if _is_id(value, rows))
    used = next(valid, None)
    if used is None:
        raise ModelError(
            "the checkpoint has no start token for its decoder",
            expected="decoder_start_token_id in config.json",
            fix="add it: for T5 it is the padding token, for BART the end token",
            field="model",
        )
    model.config.decoder_start_token_id = used
    if model.can_generate():
        model.generation_config.decoder_start_token_id = used
    if in_config != used or in_generation not in (None, used):
        values = f"{in_config} in config.json and {in_generation} in generation_config.json"
        yield f"decoder_start_token_id is {values}: {used} is used"


def _decoder_rows(model: PreTrainedModel) -> int | None:
    """Return the size of the output vocabulary."""
    output: Any = model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    return embedding_rows(model) if weight is None else int(weight.shape[0])


def _is_id(value: Any, rows: int | None) -> bool:
    return isinstance(value, int) and value >= 0 and (rows is None or value < rows)


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[str]]:
    """Return all end tokens of the generation settings and the tokenizer, and a sentence per ignored one.

    If the tokenizer has no end token, ordinary tokens are ignored: they are defaults of configs in transformers, and
    would truncate outputs.
    """
    own = tokenizer.eos_token_id
    ignored = list[str]()
    kept = list[int]()
    for token in _ids(_generation_value(model, "eos_token_id")):
        text = _text_of(tokenizer, token)
        if text is None:
            ignored.append(f"end token {token} of the generation settings is outside the vocabulary: it is not used")
        elif own is None and not _is_control(tokenizer, text):
            ignored.append(f"end token {token} of the generation settings is the ordinary token {text!r}: not used")
        else:
            kept.append(token)
    if own is not None:
        kept.append(int(own))
    return list(dict.fromkeys(kept)), ignored


def _generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Replace the generation settings by greedy decoding with the checkpoint's special tokens.

    All outputs in the report are decoded greedily, so the saved folder reproduces them. Invalid settings could not be
    saved.
    """
    before = getattr(model, "generation_config", None)
    if before is None or not model.can_generate():
        return
    stops, ignored = stop_ids(model, tokenizer)
    yield from ignored
    ends = _ids(before.eos_token_id)
    if ends and tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        own = tokenizer.eos_token_id
        yield f"the generation settings have the end tokens {ends}, the tokenizer has {own}: all are used"
    if not stops:
        yield "neither the tokenizer nor the generation settings have an end token: outputs end at the maximum length"
    rows = _decoder_rows(model)
    after = GenerationConfig(
        do_sample=False,
        num_beams=1,
        bos_token_id=before.bos_token_id if _is_id(before.bos_token_id, rows) else tokenizer.bos_token_id,
        eos_token_id=stops[0] if len(stops) == 1 else stops or None,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=before.decoder_start_token_id,
        forced_bos_token_id=before.forced_bos_token_id if _is_id(before.forced_bos_token_id, rows) else None,
    )
    fields = before.to_diff_dict().items()
    replaced = [name for name, value in fields if name not in _KEPT and value not in (None, False)]
    if replaced:
        yield f"generation settings replaced by greedy decoding: {', '.join(sorted(replaced))}"
    model.generation_config = after
    _remove_task_settings(model.config)


def _remove_task_settings(config: PretrainedConfig) -> None:
    """Remove settings that pipelines use instead of the generation settings (sampling, beams, a prefix)."""
    for name in ("task_specific_params", "prefix"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)


# ---- Positions ----


def set_limits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest: int,
    max_new_tokens: int,
    max_length: int | None = None,
) -> None:
    """Set the limits of inputs and outputs in the saved folder to those of the report.

    Args:
        model: Its generation settings are changed in place, if it has any.
        tokenizer: Changed in place.
        longest: Maximum tokens of an input.
        max_new_tokens: Maximum tokens of an output.
        max_length: Maximum tokens of prompt and output together, which replaces ``max_new_tokens``.
    """
    tokenizer.model_max_length = longest
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        settings.max_new_tokens = max_new_tokens if max_length is None else None
        settings.max_length = max_length


def position_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest input in tokens by the model's positions, else by its tokenizer; None if there is no limit.

    A learned table may reserve rows for padding: RoBERTa and similar models number positions from ``padding_idx + 1``,
    BART and OPT from ``offset``.
    """
    own = own_limit(model)
    if own is not None:
        return own
    limit = tokenizer.model_max_length
    return limit if 0 < limit < _NO_LIMIT else None


def own_limit(model: PreTrainedModel) -> int | None:
    """Return the longest input in tokens by the model's positions; None if there is no limit.

    Those of an encoder-decoder are the positions of its encoder.
    """
    part = model.get_encoder() if model.config.is_encoder_decoder else model
    names = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings", "max_seq_len")
    return _limit_of(part, _config_of(part, model).get_text_config(), names)


def answer_limit(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that a decoder can read or write by its positions; None if there is no limit."""
    part = model.get_decoder() if model.config.is_encoder_decoder else model
    config = _config_of(part, model).get_text_config(decoder=True)
    limit = _limit_of(part, config, ("max_position_embeddings", "max_decoder_position_embeddings"))
    # ProphetNet predicts the token after the next one too, at a position of its own.
    return limit - 1 if limit is not None and getattr(config, "ngram", 1) > 1 else limit


def _config_of(part: nn.Module, model: PreTrainedModel) -> Any:
    """Return the config of an encoder or decoder; some, such as those of FSMT, have none of their own."""
    return getattr(part, "config", model.config)


def _limit_of(part: nn.Module, config: Any, names: Sequence[str]) -> int | None:
    limits = (*(getattr(config, name, None) for name in names), *_table_limits(part))
    return min((limit for limit in limits if isinstance(limit, int) and 0 < limit < _NO_LIMIT), default=None)


def _table_limits(model: nn.Module) -> Iterator[int]:
    """Yield the number of usable positions of each learned table."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if _is_position_table(name) and isinstance(weight, torch.Tensor) and weight.dim() == 2:
            padding = getattr(module, "padding_idx", None)
            yield len(weight) - int(getattr(module, "offset", 0)) - (0 if padding is None else int(padding) + 1)


def _is_position_table(name: str) -> bool:
    """Return whether a module with this dotted name is a table of absolute text positions."""
    is_text = not any(part in name for part in ("vision", "visual", "image", "audio"))
    return is_text and name.rpartition(".")[2] in _POSITION_TABLES
