"""Render chat templates: for a fixed date, reproducibly, and with clear errors.

A template may write today's date into the prompt (Llama 3.1 and 3.2 do). Scores would then change from day to day, and
cached answers would belong to other prompts. The date is therefore fixed for a run, and is part of the config.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime, time
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from fulltune.errors import ModelError
from fulltune.models import chat as limits

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

Messages = Sequence[Mapping[str, str]]

#: Name of the function with which templates read the clock.
CLOCK = "strftime_now"

#: Conversations with which templates are tested.
SAMPLES: tuple[Messages, ...] = (
    ({"role": "user", "content": "a"},),
    ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}),
)

#: Number of renderings that must be equal; a random choice between two texts passes once in 2 ** (_RENDERINGS - 1).
_RENDERINGS = 16

_EXPECTED = "one that takes turns of a user and an assistant"

#: User text that does not occur in any template.
_WORDS = "zqxjv kwyph"

#: Matches a list of parts that was printed instead of read.
_PRINTED = re.compile(r"""['"]text['"]: ?['"]""")

#: Largest number in a template. Text that is repeated or padded as often as that may take all memory, and neither this
#: nor a power is interrupted by the limit on time.
_LARGEST = 10_000_000

#: Matches a width or precision in a format string, as large as that or larger.
_WIDE = re.compile(r"(?:%[^a-zA-Z%]*?|\{[^{}]*?:[^{}]*?)(\d{8,})")

#: Variables that templates may require and that rows do not have.
_EXTRAS = ("tools", "documents")

#: Matches the address of an object, which differs between processes.
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")

#: Directives of ``strftime`` without their percent sign; a flag before the letter is specific to glibc.
_DIRECTIVES = tuple(f"{flag}{letter}" for flag in ("-", "") for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ")

#: Writes ``format`` with the values of its directives. A doubled percent sign is a literal one, whatever follows it.
_CLOCK_BODY = (
    "{% for part in format.split('%%') %}{{ '' if loop.first else '%' }}"
    "{% for piece in part.split('%') %}{% if loop.first %}{{ piece }}"
    "{% elif piece[:2] in values %}{{ values[piece[:2]] ~ piece[2:] }}"
    "{% elif piece[:1] in values %}{{ values[piece[:1]] ~ piece[1:] }}"
    "{% else %}%{{ piece }}{% endif %}{% endfor %}{% endfor %}"
)


def wants_chat(bundle: Bundle, setting: str) -> bool:
    """Return True if prompts use the tokenizer's chat template (``auto``: if it has one)."""
    has_template = bool(getattr(bundle.tokenizer, "chat_template", None))
    return bundle.family == "decoder" and (setting == "on" or (setting == "auto" and has_template))


def chat_ids(bundle: Bundle, messages: Messages, day: date | None) -> list[int]:
    """Return the token ids of a conversation, ready for the assistant's answer.

    Args:
        bundle: Model and tokenizer.
        messages: Turns with ``role`` and ``content``.
        day: Today's date for the template; None for the current date.

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
    """Return messages whose content is a list of one part, as in templates of image models."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


@lru_cache(maxsize=16)
def _form(tokenizer: Any, template: str, day: date) -> tuple[bool, str]:
    """Determine how a template reads the content of messages.

    Returns:
        True if it reads a list of parts (plain text is then dropped silently), and the reason why the user's text does
        not reach the prompt in either form (empty if it does).

    Raises:
        EndlessTemplate: The template exceeded the time limit.
    """
    messages = [{"role": "user", "content": _WORDS}]
    failure = ""
    for is_list in (False, True):
        try:
            text = _apply(tokenizer, template, _as_parts(messages) if is_list else messages, day, tokenize=False)
        except limits.EndlessTemplate:
            raise  # a second attempt would not end either
        except _raised() as error:
            failure = failure or _need(tokenizer, template, messages, day) or _reason(error)
            continue
        if _contains(text) and not (is_list and _PRINTED.search(text)):
            return is_list, ""
    return False, failure or "it drops the user's text, both as text and as a list of parts"


def _contains(text: str, words: str = _WORDS) -> bool:
    """Return True if a prompt contains a user's text, ignoring case."""
    return words.casefold() in text.casefold()


def _need(tokenizer: Any, template: str, messages: list[Any], day: date) -> str:
    """Return a sentence about a missing variable without which a template cannot be rendered, or an empty string."""
    for name in _EXTRAS:
        if name not in template:
            continue
        with suppress(*_raised()):
            _apply(tokenizer, template, messages, day, tokenize=False, **{name: []})
            return f"it needs {name}, which rows do not have"
    return ""


def content_fact(bundle: Bundle, setting: str, day: date) -> str:
    """Return a sentence if the chat template does not read the content of messages as plain text."""
    if not wants_chat(bundle, setting) or not _form(bundle.tokenizer, _template(bundle), day)[0]:
        return ""
    return "the chat template reads a message as a list of parts: texts are passed in that form"


def reads_clock(bundle: Bundle) -> bool:
    """Return True if the chat template reads the date."""
    return bundle.family == "decoder" and CLOCK in str(getattr(bundle.tokenizer, "chat_template", None))


def clock_fact(bundle: Bundle, setting: str) -> str:
    """Return a sentence if the chat template reads the date or the time."""
    if not wants_chat(bundle, setting) or not reads_clock(bundle):
        return ""
    return (
        "the chat template reads the clock: prompts have the date of data.chat_date and the time 00:00, but other "
        "programs that use the saved model read the current time"
    )


def check_template(bundle: Bundle, setting: str, day: date) -> None:
    """Check that the chat template, if it is used, renders the user's text, and renders it reproducibly.

    Raises:
        ModelError: It does not.
    """
    if not wants_chat(bundle, setting):
        return
    before = random.getstate()
    with _failures(bundle):
        if risk := _unlimited(_template(bundle)):
            raise _error(bundle, risk, "one whose time and memory are limited")
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
                    bundle, "renders the same messages differently each time", "the same text for the same conversation"
                )
    finally:
        random.setstate(before)
    _check_turns(bundle, day)


def _unlimited(template: str) -> str:
    """Return which operation of a template may take any time or memory at once, or an empty string."""
    from jinja2 import Environment

    previous = "("
    for _, kind, text in Environment().lex(template):
        if kind == "whitespace":
            continue
        if text == "**" and previous not in ("(", ","):  # there it passes keyword arguments on
            return "computes a power"
        if kind == "integer" and (len(text) > len(f"{_LARGEST:_}") or int(text, 0) > _LARGEST):
            return f"has the number {text[:20]}, more than {_LARGEST:,}"
        if kind == "string" and (width := _WIDE.search(text)):
            return f"formats a text of {width[1][:20]} characters, more than {_LARGEST:,}"
        previous = text
    return ""


def _check_turns(bundle: Bundle, day: date) -> None:
    """Warn if a template drops earlier turns, which hold the shots."""
    words = [_WORDS, _WORDS[::-1], "".join(sorted(_WORDS))]
    roles = ("user", "assistant", "user")
    text = chat_text(bundle, [{"role": role, "content": one} for role, one in zip(roles, words, strict=True)], day)
    if not all(_contains(text, one.strip()) for one in words):
        warnings.warn(
            f"the chat template of {bundle.info.source!r} drops earlier turns: few-shot prompts lack their shots",
            stacklevel=2,
        )


@cache
def _raised() -> tuple[type[Exception], ...]:
    """Return exceptions of templates: Jinja's own and others, as a template may call its inputs with any arguments."""
    from jinja2.exceptions import TemplateError

    return (
        *(TemplateError, limits.EndlessTemplate, ArithmeticError, AttributeError, LookupError, MemoryError),
        *(RecursionError, TypeError, ValueError),
    )


def _template(bundle: Bundle) -> str:
    return str(bundle.tokenizer.get_chat_template())


@lru_cache(maxsize=16)
def _on(template: str, day: date) -> str:
    """Return a template with a fixed date: a macro replaces the function that reads the clock.

    The line break after the macro is not rendered (``trim_blocks``).
    """
    if CLOCK not in template:
        return template
    moment = datetime.combine(day, time.min)
    values = ", ".join(f"{_quoted(name)}: {_quoted(moment.strftime(f'%{name}'))}" for name in _DIRECTIVES)
    # A table, not a chain of filters: Jinja tries to evaluate each part of a chain when it compiles it.
    head = f"{{% macro {CLOCK}(format) %}}{{% set values = {{{values}}} %}}"
    return f"{head}{_CLOCK_BODY}{{% endmacro %}}\n{template}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"'{escaped}'"


@contextmanager
def _failures(bundle: Bundle) -> Iterator[None]:
    try:
        with limits.limited(limits.SECONDS):
            yield
    except _raised() as error:
        raise _error(bundle, f"fails ({_reason(error)})", _EXPECTED) from error


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _error(bundle: Bundle, problem: str, expected: str) -> ModelError:
    return ModelError(
        f"the chat template of {bundle.info.source!r} {problem}",
        expected=expected,
        fix="set data.chat: off, or correct the template in the tokenizer's files",
        field="data.chat",
    )
