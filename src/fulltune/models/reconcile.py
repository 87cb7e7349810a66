"""Facts that a checkpoint's files state twice, or not at all, are settled once, when it is loaded.

The tokenizer, ``config.json`` and ``generation_config.json`` each name special tokens, and any of them may be missing,
wrong or different from the others. Everything after loading (baselines, training, scoring, the saved folder) reads the
settled values. Each change is one sentence for the log, the record and the report.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fulltune.errors import ModelError

logger = logging.getLogger("fulltune.models")

#: Part of the keys of cached answers: raise it when the same files would be settled in another way.
VERSION = 1

#: New rows of the embeddings are drawn with this seed, so that every load of the same files gives the same model.
_SEED = 0

#: More missing rows than this, and than the model has, mean that the tokenizer is another model's.
_MOST_NEW_ROWS = 65_536

#: The padding token of a classifier whose tokenizer has no special token at all.
_NEW_PAD = "<|pad|>"

#: Tokens that look like control tokens although the tokenizer does not list them as special.
_CONTROL = re.compile(r"<.*>|\[.*\]|\|.*\|", re.DOTALL)

#: Limits from here on stand for none.
_NO_LIMIT = 1_000_000

#: Fields of the generation settings that are kept, or that say nothing of how answers are made.
_KEPT = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"}
    | {"forced_eos_token_id", "transformers_version", "use_cache", "_from_model_config"}
)

#: Names that the models of transformers give to a table of absolute positions.
_POSITION_TABLES = ("wpe", "position_embeddings", "embed_positions", "position_embedding", "positions_embed")

#: Roles whose token can pad, best first. What a classifier's last token is, is found by the padding id.
_PAD_ROLES = ("eos_token", "unk_token", "bos_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True)
class Reconciled:
    """What was settled.

    Attributes:
        changes: One sentence for each change.
        grown: Rows that were added to the embeddings.
    """

    changes: tuple[str, ...] = ()
    grown: int = 0


def config_overrides(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, family: str
) -> tuple[dict[str, Any], list[str]]:
    """Return fields of the config that must be replaced before the model can be built, and a sentence for each."""
    pad, rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if not isinstance(pad, int) or not isinstance(rows, int) or -rows <= pad < rows:
        return {}, []
    own = tokenizer.pad_token_id
    used = own if own is not None and own < rows else None if family == "decoder" else 0
    return {"pad_token_id": used}, [
        f"pad_token_id {pad} of config.json is outside the vocabulary of {rows} tokens: {used} is used"
    ]


def generation_override(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return settings that replace a ``generation_config.json`` which transformers refuses to read, and a sentence."""
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
    """Return the token ids that a file of generation settings names, as far as it can be read."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = stated.items() if isinstance(stated, dict) else ()
    return {name: value for name, value in known if name.endswith("_token_id") and _ids(value)}


def reconcile(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: str, *, is_classifier: bool
) -> Reconciled:
    """Settle special tokens, embeddings and generation settings of a loaded checkpoint, in place.

    Raises:
        ModelError: The tokenizer belongs to another model.
    """
    changes = list[str]()
    changes += _no_settings_of_its_own(tokenizer)
    changes += _end_token(model, tokenizer)
    changes += _pad_token(model, tokenizer, is_classifier)
    grown = grow_embeddings(model, tokenizer)
    if grown:
        changes.append(f"the tokenizer has tokens without an embedding: {_rows(grown)} added to the embeddings")
    changes += _pad_id(model, tokenizer, family)
    changes += _start_of_decoder(model, tokenizer)
    changes += _generation(model, tokenizer)
    if family == "decoder" and not is_classifier:
        changes += _no_closing_tokens(tokenizer)
    if family == "encoder-decoder" and is_classifier:
        changes += _one_end_token(model, tokenizer)
    for change in changes:
        logger.info("%s: %s", model.name_or_path or type(model).__name__, change)
    return Reconciled(tuple(changes), grown)


def input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    """Return the embeddings of a model's tokens; None where it has no such table (CANINE hashes characters)."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def embedding_rows(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that the model has an embedding for; None where it looks none up in a table."""
    embeddings: Any = input_embeddings(model)
    weight = getattr(embeddings, "weight", None)
    return int(weight.shape[0]) if isinstance(embeddings, nn.Embedding) and weight is not None else None


# ---- Tokens and embeddings ----


def _rows(count: int) -> str:
    return "1 row was" if count == 1 else f"{count} rows were"


def grow_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Add rows for tokens that the tokenizer has and the model has not; nothing is cut off. Return the number of rows.

    Raises:
        ModelError: So many are missing that the tokenizer belongs to another model.
    """
    rows = embedding_rows(model)
    if rows is None:
        return 0
    wanted = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    missing = wanted - rows
    if missing <= 0:
        return 0
    if missing > max(_MOST_NEW_ROWS, rows):
        raise ModelError(
            f"the tokenizer has ids up to {wanted - 1:,}, the model embeddings for {rows:,} tokens",
            expected="the tokenizer that the model was trained with",
            fix="put the model's own tokenizer files into its folder",
            field="model",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model.resize_token_embeddings(wanted)
    return missing


def _no_settings_of_its_own(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Turn off what a ``tokenizer.json`` does to texts by itself: cut them, pad them, split their words at random."""
    if not tokenizer.is_fast:
        return
    backend: Any = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        limit = backend.truncation["max_length"]
        backend.no_truncation()
        yield f"tokenizer.json cuts texts at {limit} tokens: it no longer does, data.max_length says where they are cut"
    if backend.padding is not None:
        backend.no_padding()
    if getattr(backend.model, "dropout", None):
        yield f"tokenizer.json splits words at random (dropout {backend.model.dropout:g}): it no longer does"
        backend.model.dropout = None


def _end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Give a tokenizer without an end token the one that the model's settings name."""
    if tokenizer.eos_token is not None or not model.can_generate():
        return
    for token in _ids(_generation_value(model, "eos_token_id")):
        text = _text_of(tokenizer, token)
        if text is not None and _is_control(tokenizer, text):
            tokenizer.eos_token = text
            yield f"the tokenizer names no end token: {text!r} is used, as the generation settings say"
            return


def _pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, is_classifier: bool) -> Iterator[str]:
    """Give a tokenizer without a padding token one that it has; padding is masked by length, never by id.

    A classifier on a decoder finds the last token of a text by the padding id, and one on an encoder-decoder counts end
    tokens: the first needs a padding token, the second one that is not the end token.
    """
    if tokenizer.pad_token is not None:
        return
    counts_ends = is_classifier and model.config.is_encoder_decoder
    roles = _PAD_ROLES[1:] if counts_ends else _PAD_ROLES
    known = (getattr(tokenizer, role, None) for role in roles)
    chosen = next((token for token in known if token is not None), None)
    if chosen is None and not is_classifier:
        return
    if chosen is None:
        tokenizer.add_special_tokens({"pad_token": _NEW_PAD})
        yield f"the tokenizer has no special token at all: {_NEW_PAD!r} was added for padding"
        return
    tokenizer.pad_token = chosen
    yield f"the tokenizer names no padding token: {str(chosen)!r} is used, told from text by length"


def _pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: str) -> Iterator[str]:
    """Make the model's padding id the tokenizer's, except where the model's own is valid and fixes its positions."""
    config, own = model.config, tokenizer.pad_token_id
    before, rows = getattr(config, "pad_token_id", None), embedding_rows(model)
    is_valid = isinstance(before, int) and (rows is None or 0 <= before < rows)
    if own is None or own == before or (is_valid and family != "decoder"):
        return
    config.pad_token_id = own
    if before is not None:
        yield f"pad_token_id of config.json is {before}, the tokenizer's is {own}: {own} is used"


def _is_control(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return text in tokenizer.all_special_tokens or bool(_CONTROL.fullmatch(text))


def _text_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str | None:
    if not 0 <= token < max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0)):
        return None
    text = tokenizer.convert_ids_to_tokens(token)
    return text if isinstance(text, str) else None


# ---- What the tokenizer puts around a text ----


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text by default."""
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    whole = list(tokenizer("a").input_ids)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _no_closing_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Keep a decoder's tokenizer from closing a text: the model would continue after the end of its prompt."""
    before, after = frame(tokenizer)
    if not after or not tokenizer.is_fast:
        return
    if getattr(tokenizer, "add_eos_token", False):
        tokenizer.add_eos_token = False
    _set_frame(tokenizer, before, [])
    closing = " ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in after)
    yield f"the tokenizer closes every text with {closing}: it no longer does, for a decoder continues its prompt"


def _one_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Let every text have one end token, after it: the head of an encoder-decoder reads the state there."""
    tokenizer.split_special_tokens = True  # a text that spells it must not have two
    tokenizer.init_kwargs["split_special_tokens"] = True  # so that it is saved
    end: Any = model.config.eos_token_id
    before, after = frame(tokenizer)
    if end is None or end in after or not tokenizer.is_fast:
        return
    _set_frame(tokenizer, before, [*after, end])
    yield f"the tokenizer did not end a text with {tokenizer.convert_ids_to_tokens(end)}, which the head reads: it does"


def _set_frame(tokenizer: PreTrainedTokenizerBase, before: list[int], after: list[int]) -> None:
    """Let a fast tokenizer put these ids before and after every text; a pair is not kept apart."""
    opening, closing = ([str(tokenizer.convert_ids_to_tokens(token)) for token in ids] for ids in (before, after))
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join([*opening, "$A", *closing]),
        pair=" ".join([*opening, "$A", *closing, "$B:1", *closing]),
        special_tokens=list(dict(zip([*opening, *closing], [*before, *after], strict=True)).items()),
    )


# ---- Generation ----


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [int(item) for item in values if isinstance(item, int)]


def _generation_value(model: PreTrainedModel, name: str) -> Any:
    """Return what ``generation_config`` says, else what the model's config says."""
    value = getattr(getattr(model, "generation_config", None), name, None)
    return getattr(model.config, name, None) if value is None else value


def _start_of_decoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Settle the first token of an encoder-decoder's answers: training reads it in one place, generation in another."""
    if not model.config.is_encoder_decoder:
        return
    name, rows = "decoder_start_token_id", _decoder_rows(model)
    by_generation = getattr(getattr(model, "generation_config", None), name, None)
    by_config = getattr(model.config, name, None)
    fallbacks = (
        getattr(type(model.config), name, None),
        tokenizer.bos_token_id,
        tokenizer.cls_token_id,
        model.config.pad_token_id,
        tokenizer.eos_token_id,
    )
    usable = (value for value in (by_generation, by_config, *fallbacks) if _is_id(value, rows))
    used = next(usable, None)
    if used is None:
        raise ModelError(
            "the checkpoint does not say which token begins an answer",
            expected="decoder_start_token_id in config.json",
            fix="add it: for T5 it is the padding token, for BART the end token",
            field="model",
        )
    model.config.decoder_start_token_id = used
    if model.can_generate():
        model.generation_config.decoder_start_token_id = used
    if by_config != used or by_generation not in (None, used):
        stated = [f"{by_config} in config.json", f"{by_generation} in generation_config.json"]
        yield f"decoder_start_token_id is {' and '.join(stated)}: {used} is used"


def _decoder_rows(model: PreTrainedModel) -> int | None:
    output: Any = model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    return embedding_rows(model) if weight is None else int(weight.shape[0])


def _is_id(value: Any, rows: int | None) -> bool:
    return isinstance(value, int) and value >= 0 and (rows is None or value < rows)


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[str]]:
    """Return every id that ends an answer (those of the generation settings and the tokenizer's), and what was dropped.

    An id that is an ordinary token of a tokenizer without an end token would cut answers short: configs of transformers
    have such ids by default.
    """
    stated, own = _ids(_generation_value(model, "eos_token_id")), tokenizer.eos_token_id
    dropped, kept = list[str](), list[int]()
    for token in stated:
        text = _text_of(tokenizer, token)
        if text is None:
            dropped.append(f"end token {token} of the generation settings is outside the vocabulary: it is not used")
        elif own is None and not _is_control(tokenizer, text):
            dropped.append(f"end token {token} of the generation settings is the ordinary token {text!r}: not used")
        else:
            kept.append(token)
    return list(dict.fromkeys([*kept, *([] if own is None else [int(own)])])), dropped


def _generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Replace the generation settings by greedy decoding with the checkpoint's special tokens.

    That is how every answer of the report is made, so that the saved folder gives the same ones; and it can be saved,
    which invalid settings cannot.
    """
    before = getattr(model, "generation_config", None)
    if before is None or not model.can_generate():
        return
    stops, dropped = stop_ids(model, tokenizer)
    yield from dropped
    stated = _ids(before.eos_token_id)
    if stated and tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in stated:
        yield f"the generation settings end an answer at {stated}, the tokenizer at {tokenizer.eos_token_id}: both do"
    if not stops:
        yield "neither the tokenizer nor the generation settings name an end token: answers end at their longest length"
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
    left = [name for name, value in before.to_diff_dict().items() if name not in _KEPT and value not in (None, False)]
    if left:
        yield f"generation settings that were replaced by greedy decoding: {', '.join(sorted(left))}"
    model.generation_config = after
    _forget_tasks(model.config)


def _forget_tasks(config: PretrainedConfig) -> None:
    """Remove what a pipeline would decode with in place of the generation settings (sampling, beams, a prefix)."""
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
    """Let the saved folder cut inputs and end answers where the report does.

    Args:
        model: Its generation settings are changed in place, where it has any.
        tokenizer: Changed in place.
        longest: Tokens of an input.
        max_new_tokens: Tokens of an answer.
        max_length: Tokens of prompt and answer, where those limit an answer in place of ``max_new_tokens``.
    """
    tokenizer.model_max_length = longest
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        settings.max_new_tokens = max_new_tokens if max_length is None else None
        settings.max_length = max_length


def position_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest input in tokens that the model has positions for, else that its tokenizer names, if any.

    A learned table may keep rows for padding: RoBERTa and its relatives number positions from ``padding_idx + 1``, BART
    and OPT from ``offset``.
    """
    own = own_limit(model)
    named = tokenizer.model_max_length
    return own if own is not None else named if 0 < named < _NO_LIMIT else None


def own_limit(model: PreTrainedModel) -> int | None:
    """Return the longest input in tokens that the model itself has positions for; None where it names no limit."""
    config = model.config.get_text_config()
    stated = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    known = [limit for limit in (*stated, *_table_limits(model)) if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
    return min(known, default=None)


def _table_limits(model: nn.Module) -> Iterator[int]:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if _is_position_table(name) and isinstance(weight, torch.Tensor) and weight.dim() == 2:
            padding = getattr(module, "padding_idx", None)
            yield len(weight) - int(getattr(module, "offset", 0)) - (0 if padding is None else int(padding) + 1)


def _is_position_table(name: str) -> bool:
    """Return whether a module of this dotted name looks up absolute positions in the text."""
    is_text = not any(part in name for part in ("vision", "visual", "image", "audio"))
    return is_text and name.rpartition(".")[2] in _POSITION_TABLES
