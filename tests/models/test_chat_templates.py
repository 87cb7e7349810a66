"""Chat templates that are wrong, hostile or endless are refused with a message; others give exactly their ids."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import fakes
import pytest

from fulltune.errors import ModelError
from fulltune.models import chat
from fulltune.tasks import prompts
from fulltune.tasks.prompts import Wording

GOOD = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if %}", "fails"),
        ("{{ messages", "fails"),
        ("{% for m in messages %}{{ m.content }}", "fails"),
        ("{{ raise_exception('no system turn') }}", r"fails \(no system turn\)"),
        ("{{ ''.__class__.__mro__ }}", "fails .*unsafe"),
        ("{{ messages.__init__.__globals__ }}", "fails .*unsafe"),
        ("{{ nothing.at.all }}", "fails .*undefined"),
        ("{{ no_such_function() }}", "fails .*undefined"),
        ("{{ messages[0]['content'] | no_such_filter }}", "fails"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "fails"),
        ("{{ 1 / 0 }}", "fails"),
        ("{{ messages + 1 }}", "fails"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails"),
        ("{% include 'other' %}", "fails"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "fails .*does not end within",
        ),
    ],
)
def test_an_unusable_template_is_refused(template: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 0.5)
    bundle = fakes.bundle("gpt2")
    bundle.tokenizer.chat_template = template
    started = time.monotonic()
    with pytest.raises(ModelError, match=rf"chat template of .* {words}.*Set data.chat: off"):
        prompts.prompt_ids(bundle, Wording(chat=True), "hello")
    assert time.monotonic() - started < 5


def test_a_template_that_takes_too_much_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "BYTES", 2**26)
    bundle = fakes.bundle("gpt2")
    doubled = "{% set n = namespace(x='x') %}{% for i in range(60) %}\n{% set n.x = n.x + n.x %}\n{% endfor %}"
    bundle.tokenizer.chat_template = doubled
    with pytest.raises(ModelError, match="it takes more than 64 MiB of memory"):
        prompts.prompt_ids(bundle, Wording(chat=True), "hello")


def test_a_template_in_another_thread_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    bundle = fakes.bundle("gpt2")
    bundle.tokenizer.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with ThreadPoolExecutor(1) as pool, pytest.raises(ModelError, match="does not end within"):
        pool.submit(prompts.prompt_ids, bundle, Wording(chat=True), "hello").result()


def test_a_good_template_gives_its_own_ids_and_leaves_tracing_alone() -> None:
    bundle = fakes.bundle("llama")
    bundle.tokenizer.chat_template = GOOD
    before = sys.gettrace()
    ids = prompts.prompt_ids(bundle, Wording(chat=True), "hello")
    messages = [{"role": "user", "content": "hello"}]
    assert ids == bundle.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert sys.gettrace() is before
