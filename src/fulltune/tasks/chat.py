"""Chat templates: rendered on a fixed day, the same every time, and with every failure as a sentence.

A template may write today's date into the prompt (Llama 3.1 and 3.2 do). Scores would then change from day to day, and
answers from the cache would be those to other prompts: the day is fixed once a run, and is part of the config.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

from fulltune.errors import ModelError
from fulltune.model import Bundle
from fulltune.models import chat as limits

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

#: An object's address, which is another in each process.
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")

#: What ``strftime`` knows; a flag before the letter is glibc's.
_DIRECTIVES = tuple(f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ")

#: What a template can raise, apart from Jinja's own errors: it may call whatever it is given with anything.
_RAISED = (
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
    with _failures(bundle):
        ids: Any = bundle.tokenizer.apply_chat_template(
            list(map(dict, messages)),
            chat_template=_on(_template(bundle), day or date.today()),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    return [int(token) for token in ids]


def chat_text(bundle: Bundle, messages: Messages, day: date) -> str:
    """Return a conversation as text.

    Raises:
        ModelError: The template fails.
    """
    with _failures(bundle):
        return str(
            bundle.tokenizer.apply_chat_template(
                list(map(dict, messages)),
                chat_template=_on(_template(bundle), day),
                add_generation_prompt=True,
                tokenize=False,
            )
        )


def reads_clock(bundle: Bundle) -> bool:
    """Return whether the chat template asks for the date."""
    return bundle.family == "decoder" and CLOCK in str(getattr(bundle.tokenizer, "chat_template", None))


def check_template(bundle: Bundle, setting: str, day: date) -> None:
    """Check that the chat template, where it is used, renders, and renders the same every time.

    Raises:
        ModelError: It does not.
    """
    if not wants_chat(bundle, setting):
        return
    before = random.getstate()
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
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise _error(bundle, f"fails ({reason})", "one that takes turns of a user and an assistant") from error


def _error(bundle: Bundle, found: str, expected: str) -> ModelError:
    return ModelError(
        f"the chat template of {bundle.info.source!r} {found}",
        expected=expected,
        fix="set data.chat: off, or correct the template in the tokenizer's files",
        field="data.chat",
    )
