"""Set the source and target language of multilingual tokenizers (NLLB, mBART, M2M-100) and the model's first token.

Such a tokenizer adds a language code to every text. Training reads the target language from the labels, generation from
the model's settings: both must agree with each other and with the data.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fulltune.errors import ConfigError, ModelError, Problem

_log = logging.getLogger(__name__)

#: Formats of a language code: eng_Latn, en_XX, __eng__.
_CODE = re.compile(r"[a-z]{2,4}(_[A-Za-z]{2,8})+|__[a-z]{2,4}__")

#: First words of the sentence about a target language that nothing defines.
ASSUMED = "no target language is set"

#: Config keys of the languages.
_SOURCE = "data.source_language"
_TARGET = "data.target_language"


def set_languages(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None
) -> tuple[str, ...]:
    """Set the languages of a tokenizer in place, and make the model begin its outputs with the target language's code.

    Args:
        model: Its generation settings and its start token are set to the target language.
        tokenizer: Both languages are saved with it.
        source: ``data.source_language``; None keeps the tokenizer's setting.
        target: ``data.target_language``; None keeps the tokenizer's setting, else the model's forced start token.

    Returns:
        One sentence per change.

    Raises:
        ConfigError: The tokenizer does not support languages, or not these.
        ModelError: The model's forced start token is that of another language.
    """
    codes = language_codes(tokenizer)
    _check(codes, {_SOURCE: source, _TARGET: target})
    if not codes:
        return ()
    any_tokenizer: Any = tokenizer
    if source is not None:
        any_tokenizer.src_lang = tokenizer.init_kwargs["src_lang"] = source
    if not model.config.is_encoder_decoder or not model.can_generate():
        return ()
    changes = tuple(_target(model, tokenizer, codes, target))
    for change in changes:
        _log.warning("%s", change)
    return changes


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the language codes of a tokenizer and their token ids; empty for most tokenizers."""
    if not hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        return {}
    vocabulary = tokenizer.get_vocab()
    code_to_token: dict[str, str] = getattr(tokenizer, "lang_code_to_token", {})
    candidates = [*getattr(tokenizer, "lang_code_to_id", {}), *tokenizer.all_special_tokens]
    tokens = code_to_token or {text: text for text in map(str, candidates) if _CODE.fullmatch(text)}
    # M2M-100 stores the ids of its codes separately from its vocabulary.
    ids: dict[str, int] = {**vocabulary, **getattr(tokenizer, "lang_token_to_id", {})}
    return {code: ids[token] for code, token in tokens.items() if token in ids}


def _check(codes: dict[str, int], languages: dict[str, str | None]) -> None:
    """Check that the tokenizer supports the languages in the config.

    Raises:
        ConfigError: It does not; all problems are reported.
    """
    problems = []
    for field, language in languages.items():
        if language is None or language in codes:
            continue
        if codes:
            expected = f"one of the {len(codes)} languages of the tokenizer"
            problems.append(Problem(f"{language!r}", expected, _suggestion(language, list(codes)), field=field))
        else:
            message = f"{language!r} for a tokenizer without language codes"
            fix = "remove it; name the language in data.instruction"
            problems.append(Problem(message, "no such key", fix, field=field))
    if problems:
        raise ConfigError(problems)


def _suggestion(language: str, codes: list[str]) -> str:
    """Return a fix: the codes that are similar to the given one, or have the same first letters."""
    lowered = {code.lower(): code for code in codes}
    close = difflib.get_close_matches(language.lower().strip("_"), list(lowered), n=3, cutoff=0.5)
    close += [code for code in lowered if code.strip("_")[:2] == language.lower().strip("_")[:2] and code not in close]
    shown = [lowered[code] for code in close[:5]]
    return f"did you mean {', '.join(shown)}?" if shown else f"choose one of {', '.join(sorted(codes)[:10])} …"


def _target(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, codes: dict[str, int], language: str | None
) -> Iterator[str]:
    """Set the target language; yield a sentence per assumption.

    Raises:
        ModelError: The model's forced start token is that of another language.
    """
    any_tokenizer: Any = tokenizer
    settings: Any = model.generation_config
    by_id = {token: code for code, token in codes.items()}
    forced = by_id.get(settings.forced_bos_token_id)
    target = language or any_tokenizer.tgt_lang or forced or any_tokenizer.src_lang
    if forced is not None and forced != target:
        raise ModelError(
            f"the model begins every output with {forced} (forced_bos_token_id), but the language of the data is "
            f"{target}",
            expected="one target language",
            fix=f"set {_TARGET}: {forced}, or remove forced_bos_token_id from generation_config.json",
            field=_TARGET,
        )
    if not (language or any_tokenizer.tgt_lang):
        reason = "the model's forced start token" if forced else "the source language"
        yield f"{ASSUMED}: {target}, {reason}, is used; set {_TARGET} to change it"
    any_tokenizer.tgt_lang = tokenizer.init_kwargs["tgt_lang"] = target
    token = codes[target]
    labels = list(tokenizer(text_target="a").input_ids)
    if labels[0] == token:
        settings.forced_bos_token_id = token
    else:  # mBART's labels end with the code, and its decoder starts with it
        model.config.decoder_start_token_id = settings.decoder_start_token_id = token
