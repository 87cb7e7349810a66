"""Source and target language of a tokenizer that marks them (NLLB, mBART, M2M-100), and the model's first token.

Such a tokenizer puts a code into every text. Training reads the target's from the labels, generation from the model's
settings: both must be the same, and must be what the data holds.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fulltune.errors import ConfigError, ModelError, Problem

logger = logging.getLogger("fulltune.models")

#: Forms of a language code: eng_Latn, en_XX, __eng__.
_CODE = re.compile(r"[a-z]{2,4}(_[A-Za-z]{2,8})+|__[a-z]{2,4}__")

_SOURCE, _TARGET = "data.source_language", "data.target_language"


def settle_languages(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None
) -> tuple[str, ...]:
    """Set the languages of a tokenizer, in place, and let the model begin its answers with the target's code.

    Args:
        model: Its generation settings and its start token follow the target language.
        tokenizer: Is saved with both languages.
        source: ``data.source_language``; None keeps the tokenizer's own.
        target: ``data.target_language``; None takes the tokenizer's own, else the model's forced start token.

    Returns:
        What was settled, one sentence each.

    Raises:
        ConfigError: The tokenizer knows no languages, or not these.
        ModelError: The model's forced start token is that of another language.
    """
    codes = language_codes(tokenizer)
    _check(codes, {_SOURCE: source, _TARGET: target})
    if not codes:
        return ()
    known: Any = tokenizer
    if source is not None:
        known.src_lang = tokenizer.init_kwargs["src_lang"] = source
    if not model.config.is_encoder_decoder or not model.can_generate():
        return ()
    changes = tuple(_target(model, tokenizer, codes, target))
    for change in changes:
        logger.warning("%s", change)
    return changes


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the languages that a tokenizer marks texts with, and the ids of their tokens; none for most."""
    if not hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        return {}
    vocabulary = tokenizer.get_vocab()
    named: dict[str, str] = getattr(tokenizer, "lang_code_to_token", {})
    listed = [*getattr(tokenizer, "lang_code_to_id", {}), *tokenizer.all_special_tokens]
    tokens = named or {text: text for text in map(str, listed) if _CODE.fullmatch(text)}
    # M2M-100 keeps the ids of its codes apart from its vocabulary.
    ids: dict[str, int] = {**vocabulary, **getattr(tokenizer, "lang_token_to_id", {})}
    return {code: ids[token] for code, token in tokens.items() if token in ids}


def _check(codes: dict[str, int], asked: dict[str, str | None]) -> None:
    wrong = {field: language for field, language in asked.items() if language is not None and language not in codes}
    problems = [
        Problem(
            f"{language!r}" if codes else f"{language!r} for a tokenizer that marks no languages",
            f"one of the {len(codes)} languages that the tokenizer knows" if codes else "no such key",
            _near(language, list(codes)) if codes else "remove it; name the language in data.instruction",
            field=field,
        )
        for field, language in wrong.items()
    ]
    if problems:
        raise ConfigError(problems)


def _near(language: str, codes: list[str]) -> str:
    """Return advice: the codes that look like what was written, or begin like it."""
    lowered = {code.lower(): code for code in codes}
    close = difflib.get_close_matches(language.lower().strip("_"), list(lowered), n=3, cutoff=0.5)
    close += [code for code in lowered if code.strip("_")[:2] == language.lower().strip("_")[:2] and code not in close]
    shown = [lowered[code] for code in close[:5]]
    return f"did you mean {', '.join(shown)}?" if shown else f"choose one of {', '.join(sorted(codes)[:10])} …"


def _target(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, codes: dict[str, int], asked: str | None
) -> Iterator[str]:
    known, settings = tokenizer, model.generation_config
    any_known: Any = known
    any_settings: Any = settings
    by_id = {token: code for code, token in codes.items()}
    forced = by_id.get(any_settings.forced_bos_token_id)
    wanted = asked or any_known.tgt_lang or forced or any_known.src_lang
    if forced is not None and forced != wanted:
        raise ModelError(
            f"the model is made to begin every answer with {forced} (forced_bos_token_id), the data's language is "
            f"{wanted}",
            expected="one target language",
            fix=f"set {_TARGET}: {forced}, or remove forced_bos_token_id from generation_config.json",
            field=_TARGET,
        )
    if not (asked or any_known.tgt_lang):
        reason = "as the model is made to begin" if forced else "the source language"
        yield f"no target language is named: answers are marked as {wanted}, {reason}; {_TARGET} names another"
    any_known.tgt_lang = tokenizer.init_kwargs["tgt_lang"] = wanted
    token = codes[wanted]
    labels = list(tokenizer(text_target="a").input_ids)
    if labels[0] == token:
        any_settings.forced_bos_token_id = token
    else:  # mBART's labels end with the code, and its decoder begins with it
        model.config.decoder_start_token_id = any_settings.decoder_start_token_id = token
