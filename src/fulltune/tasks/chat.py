"""Chat templates: rendered on a fixed day, the same every time, and with every failure as a sentence.

A template may write today's date into the prompt (Llama 3.1 and 3.2 do). Scores would then change from day to day, and
answers from the cache would be those to other prompts: the day is fixed once a run, and is part of the config.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

from fulltune.errors import ModelError
from fulltune.models import chat as limits
from fulltune.models.bundle import Bundle

Messages = Sequence[Mapping[str, str]]

#: The function by which a template reads the clock.
CLOCK = "strftime_now"

#: Conversations that a template is tried with.
SAMPLES: tuple[Messages, ...] = (
    ({"role": "user", "content": "a"},),
    ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}),
)

#: Renderings that must be equal; a choice between two by chance passes once in 2 ** (_RENDERINGS - 1) templates.
_RENDERINGS = 16

_EXPECTED = "one that takes turns of a user and an assistant"

#: A user's words that no template has by itself.
_WORDS = "zqxjv kwyph"

#: A list of parts that was printed as it is, not read.
_PRINTED = re.compile(r"""['"]text['"]: ?['"]""")

#: What a template may ask for that rows do not have.
_EXTRAS = ("tools", "documents")

#: An object's address, which is another in each process.
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")

#: What ``strftime`` knows; a flag before the letter is glibc's.
_DIRECTIVES = tuple(f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ")

#: What a template can raise, apart from Jinja's own errors: it may call whatever it is given with anything.
_RAISED: tuple[type[Exception], ...] = (
    *(TemplateError, limits.EndlessTemplate, ArithmeticError, AttributeError, LookupError, MemoryError),
    *(RecursionError, TypeError, ValueError),
)


def wants_chat(bundle: Bundle, setting: str) -> bool:
    """Whether prompts go through the tokenizer's chat template (``auto``: if it has one)."""
    has_template = bool(getattr(bundle.tokenizer, "chat_template", None))
    return bundle.family == "decoder" and (setting == "on" or (setting == "auto" and has_template))


def chat_ids(bundle: Bundle, messages: Messages, day: date | None) -> list[int]:
    """Return the token ids of a conversation, ready for the assistant's answer.

    Args:
        bundle: Whose tokenizer is used.
        messages: Turns with ``role`` and ``content``.
        day: What the template is told is today; None for the day it is.

    Raises:
        ModelError: The template fails.
    """
    ids: Any = _rendered(bundle, messages, day or date.today(), tokenize=True, return_dict=False)
    return [int(token) for token in ids]


def chat_text(bundle: Bundle, messages: Messages, day: date) -> str:
    """Return a conversation as text.

    Raises:
        ModelError: The template fails.
    """
    return str(_rendered(bundle, messages, day, tokenize=False))


def _rendered(bundle: Bundle, messages: Messages, day: date, **options: Any) -> Any:
    with _failures(bundle):
        template = _template(bundle)
        given = _as_parts(messages) if _form(bundle.tokenizer, template, day)[0] else list(map(dict, messages))
        return _apply(bundle.tokenizer, template, given, day, **options)


def _apply(tokenizer: Any, template: str, messages: list[Any], day: date, **options: Any) -> Any:
    return tokenizer.apply_chat_template(
        messages, chat_template=_on(template, day), add_generation_prompt=True, **options
    )


def _as_parts(messages: Messages) -> list[Any]:
    """Return messages whose content is a list with one part, as templates of models for images take it."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


@lru_cache(maxsize=16)
def _form(tokenizer: Any, template: str, day: date) -> tuple[bool, str]:
    """Return whether a template reads a message's content as a list of parts (a plain text is then left out silently),
    and why what the user says reaches the prompt in neither form; an empty text where it does.

    Raises:
        EndlessTemplate: It did not end in time.
    """
    asked, failure = [{"role": "user", "content": _WORDS}], ""
    for is_list in (False, True):
        try:
            text = _apply(tokenizer, template, _as_parts(asked) if is_list else asked, day, tokenize=False)
        except limits.EndlessTemplate:
            raise  # no second attempt: nothing would stop it
        except _RAISED as error:
            failure = failure or _need(tokenizer, template, asked, day) or _reason(error)
            continue
        if _says(text) and not (is_list and _PRINTED.search(text)):
            return is_list, ""
    return False, failure or "it leaves out what the user says, as a text and as a list of parts"


def _says(text: str, words: str = _WORDS) -> bool:
    """Return whether a prompt holds a user's words, in whatever case."""
    return words.casefold() in text.casefold()


def _need(tokenizer: Any, template: str, asked: list[Any], day: date) -> str:
    """Return a sentence about what a template cannot be rendered without; an empty one if it is something else."""
    for name in _EXTRAS:
        if name not in template:
            continue
        with suppress(*_RAISED):
            _apply(tokenizer, template, asked, day, tokenize=False, **{name: []})
            return f"it needs {name}, which rows do not have"
    return ""


def content_fact(bundle: Bundle, setting: str, day: date) -> str:
    """Return a sentence where the chat template takes messages in another form than a plain text."""
    if not wants_chat(bundle, setting) or not _form(bundle.tokenizer, _template(bundle), day)[0]:
        return ""
    return "the chat template reads a message as a list of parts: texts are given to it as such"


def reads_clock(bundle: Bundle) -> bool:
    """Return whether the chat template asks for the date."""
    return bundle.family == "decoder" and CLOCK in str(getattr(bundle.tokenizer, "chat_template", None))


def check_template(bundle: Bundle, setting: str, day: date) -> None:
    """Check that the chat template, where it is used, renders what the user says, and renders the same every time.

    Raises:
        ModelError: It does not.
    """
    if not wants_chat(bundle, setting):
        return
    before = random.getstate()
    with _failures(bundle):
        _, obstacle = _form(bundle.tokenizer, _template(bundle), day)
    if obstacle:
        raise _error(bundle, f"fails ({obstacle})", _EXPECTED)
    try:
        for messages in SAMPLES:
            texts = set()
            for seed in range(_RENDERINGS):
                random.seed(seed)  # Jinja's `random` filter and `lipsum` draw from the global generator
                texts.add(chat_text(bundle, messages, day))
            if len(texts) > 1 or any(map(_ADDRESS.search, texts)):
                raise _error(
                    bundle, "renders the same messages in other words each time", "one text for one conversation"
                )
    finally:
        random.setstate(before)
    _check_turns(bundle, day)


def _check_turns(bundle: Bundle, day: date) -> None:
    """Warn of a template that leaves out earlier turns: shots stand there."""
    words = [_WORDS, _WORDS[::-1], "".join(sorted(_WORDS))]
    roles = ("user", "assistant", "user")
    text = chat_text(bundle, [{"role": role, "content": one} for role, one in zip(roles, words, strict=True)], day)
    if not all(_says(text, one.strip()) for one in words):
        warnings.warn(
            f"the chat template of {bundle.info.source!r} leaves out earlier turns: few-shot prompts lack their shots",
            stacklevel=2,
        )


def _template(bundle: Bundle) -> str:
    return str(bundle.tokenizer.get_chat_template())


@lru_cache(maxsize=16)
def _on(template: str, day: date) -> str:
    """Return a template that is told a day: a macro hides the function that reads the clock.

    The line break after the macro is no part of what is rendered (``trim_blocks``).
    """
    if CLOCK not in template:
        return template
    moment = datetime.combine(day, time.min)
    values = {directive: moment.strftime(directive) for directive in _DIRECTIVES}
    replaced = "".join(f"|replace({_quoted(name)}, {_quoted(value)})" for name, value in values.items())
    # A doubled per cent sign is a sign, whatever follows it.
    part = f"{{{{ '' if loop.first else '%' }}}}{{{{ part{replaced} }}}}"
    body = f"{{% for part in format.split('%%') %}}{part}{{% endfor %}}"
    return f"{{% macro {CLOCK}(format) %}}{body}{{% endmacro %}}\n{template}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"'{escaped}'"


@contextmanager
def _failures(bundle: Bundle) -> Iterator[None]:
    try:
        with limits.limited(limits.SECONDS):
            yield
    except _RAISED as error:
        raise _error(bundle, f"fails ({_reason(error)})", _EXPECTED) from error


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _error(bundle: Bundle, found: str, expected: str) -> ModelError:
    return ModelError(
        f"the chat template of {bundle.info.source!r} {found}",
        expected=expected,
        fix="set data.chat: off, or correct the template in the tokenizer's files",
        field="data.chat",
    )
