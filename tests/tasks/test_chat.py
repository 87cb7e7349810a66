"""Chat templates get a fixed date, render the same every time, and fail with a clear message."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import fakes
import pytest
from transformers.utils import chat_template_utils

import fulltune
from fulltune.config import Config, load_config
from fulltune.errors import ModelError
from fulltune.evaluation.baselines.cache import cache_parts
from fulltune.models import chat as limits
from fulltune.models.bundle import Bundle
from fulltune.pipeline.job import checked_task_and_method, with_current_chat_date
from fulltune.pipeline.model_loading import load_model
from fulltune.tasks import chat, dataset, prompts
from fulltune.tasks.causal_lm import CausalLM
from fulltune.tasks.prompts import Wording

TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
#: As in Llama 3.1: the current date is read where none is given.
DATED = "{% set today = strftime_now('%d %b %Y') %}Today: {{ today }}\n" + TURNS
ASKED: chat.Messages = [{"role": "user", "content": "hi"}]


def bundle(template: str) -> Bundle:
    made = fakes.bundle("llama")
    made.tokenizer.chat_template = template
    return made


def text(template: str, day: date) -> str:
    return chat.chat_text(bundle(template), ASKED, day)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type:
    """Replace the clocks of transformers and of fulltune by one whose day a test sets."""

    class Clock(date):
        day = date(2026, 3, 1)

        @classmethod
        def today(cls) -> Any:
            return cls.day

    monkeypatch.setattr("fulltune.tasks.base.date", Clock)
    monkeypatch.setattr("fulltune.pipeline.resume.date", Clock)
    return Clock


@pytest.mark.parametrize(
    "directives",
    [
        "%d %b %Y",
        "%A, %-d %B %y",
        "%Y-%m-%dT%H:%M:%S",
        "100%% on %j",
        "%%d%%%d",
        "'%d' \"%m\"",
        "%D %T %e",
        "no date",
        "",
    ],
)
@pytest.mark.parametrize("day", [date(2026, 2, 3), date(1999, 12, 31)])
def test_a_template_gets_the_date_in_the_format_of_strftime(directives: str, day: date) -> None:
    template = "{{ strftime_now(" + json.dumps(directives) + ") }}|{{ strftime_now is defined }}"
    assert text(template, day) == f"{day.strftime(directives)}|True"


@pytest.mark.parametrize(
    "start", ["", "\n", "\n\n", "  ", "  {% if true %}x{% endif %}", "\n  {% if true %}x{% endif %}"]
)
def test_everything_else_is_rendered_as_before(start: str) -> None:
    rest = "{% if false %}{{ strftime_now('%d') }}{% endif %}" + TURNS
    expected = chat_template_utils.render_jinja_template([ASKED], chat_template=start + rest)[0][0]
    assert text(start + rest, date(2026, 1, 1)) == expected


def test_the_date_is_the_same_inside_macros_and_loops() -> None:
    template = (
        "{% macro head(n) %}{{ n }} {{ strftime_now('%Y') }} {% endmacro %}"
        "{% for m in messages %}{{ head(m['content']) }}{{ strftime_now('%m') }}{% endfor %}"
    )
    assert text(template, date(2020, 7, 1)) == "hi 2020 07"


@pytest.mark.parametrize(
    "template",
    [
        TURNS + "{{ ['yes', 'no']|random }}",
        TURNS + "{{ range(1000)|random }}",
        TURNS + "{{ lipsum(n=1) }}",
        TURNS + "{{ raise_exception }}",
        "{% if messages|length > 1 %}{{ ['a', 'b']|random }}{% endif %}" + TURNS,
    ],
)
def test_a_template_that_uses_random_numbers_is_refused(template: str) -> None:
    state = random.getstate()
    with pytest.raises(
        ModelError, match=r"the chat template of 'fake-llama' renders .* differently each time"
    ) as caught:
        chat.check_template(bundle(template), "auto", date(2026, 1, 1))
    assert caught.value.problems[0].field == "data.chat"
    assert random.getstate() == state
    chat.check_template(bundle(template), "off", date(2026, 1, 1))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ missing.name }}", "'missing' is undefined"),
        ("{{ missing() }}", "'missing' is undefined"),
        ("{% for i in range(10000000) %}x{% endfor %}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[9]['content'] }}", "has no element 9"),
        ("{{ 'a' + 1 }}", "can only concatenate"),
        ("{{ nothing|nofilter }}", "nofilter"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_failing_template_is_a_clear_error(template: str, reason: str) -> None:
    with pytest.raises(ModelError, match=r"the chat template of 'fake-llama' fails") as caught:
        chat.check_template(bundle(template), "auto", date(2026, 1, 1))
    assert reason in str(caught.value)
    assert "data.chat: off" in str(caught.value)


@pytest.mark.parametrize(
    ("template", "risk"),
    [
        ("{{ 'x' * 1000000000 }}", "has the number 1000000000"),
        ("{{ messages[0].content|center(0x7fffffff) }}", "has the number 0x7fffffff"),
        ("{{ messages|tojson(indent=99_999_999) }}", "has the number 99_999_999"),
        ("{{ messages[0].content }}{{ 10 ** (10 ** 9) }}", "computes a power"),
        ("{{ '%1000000000d'|format(1) }}", "formats a text of 1000000000 characters"),
        ("{{ '%.999999999f' % 1.5 }}", "formats a text of 999999999 characters"),
        ("{{ '{:>1000000000}'.format(1) }}", "formats a text of 1000000000 characters"),
    ],
)
def test_a_template_that_no_limit_stops_is_not_rendered(template: str, risk: str) -> None:
    with pytest.raises(ModelError, match=rf"the chat template of 'fake-llama' {risk}.*Set data.chat: off"):
        chat.check_template(bundle(template), "auto", date(2026, 1, 1))


@pytest.mark.parametrize("template", [DATED, "{{ strftime_now('%H:%M:%S') }}" + TURNS])
def test_the_record_says_that_a_template_reads_the_clock(template: str) -> None:
    assert "read the current time" in chat.clock_fact(bundle(template), "auto")
    assert not chat.clock_fact(bundle(template), "off")
    assert not chat.clock_fact(bundle(TURNS), "auto")


def test_a_function_that_a_template_calls_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    with pytest.raises(ModelError, match="it does not end within"):
        chat.check_template(bundle("{{ lipsum(n=9999) }}"), "auto", date(2026, 1, 1))


def test_long_numbers_in_text_are_no_widths() -> None:
    template = "{{ 'id 20240101123456, 5%: {x} 12345678' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    chat.check_template(bundle(template), "auto", date(2026, 1, 1))


def test_keyword_arguments_and_powers_in_text_are_no_power() -> None:
    template = "2**3 {% macro f(a) %}{{ a ~ '2**9' }}{% endmacro %}{% for m in messages %}{{ f(**{'a': m.content}) }}"
    chat.check_template(bundle(template + "{% endfor %}"), "auto", date(2026, 1, 1))


def test_chat_without_a_template_is_a_clear_error() -> None:
    with pytest.raises(ModelError, match="the chat template of 'fake-llama' fails"):
        chat.check_template(fakes.bundle("llama"), "on", date(2026, 1, 1))


def test_the_fingerprint_includes_date_template_and_languages() -> None:
    def of(changed: Bundle, day: int = 1, setting: str = "auto") -> str:
        return prompts.fingerprint(changed, setting, date(2026, 1, day))

    dated, plain = bundle(DATED), bundle(TURNS)
    assert of(dated) == of(bundle(DATED))
    assert of(dated) != of(dated, day=2)
    assert of(plain) == of(plain, day=2)
    assert of(plain) != of(bundle(TURNS + "!"))
    assert of(dated, setting="off") == of(dated, day=2, setting="off")
    cut = fakes.bundle("bart")
    cut.tokenizer("abc", truncation=True, max_length=2, padding="max_length")
    assert of(cut) == of(fakes.bundle("bart"))
    assert of(cut) != of(replace(cut, tokenizer=fakes.t5_tokenizer()))


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    model, tokenizer = fakes.make("llama")
    tokenizer.chat_template = DATED
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"say {n}", "completion": f"{n} times"} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tmp_path / "base"),
        "task": "causal-lm",
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25},
        "train": {"max_steps": 1},
        "guards": {"forgetting": None},
        "evaluation": {"resamples": 100, "max_new_tokens": 4, "continuations": 0},
        "baselines": {"few_shot": 1},
    }


def test_a_run_and_its_later_evaluations_use_the_same_date(job: dict[str, Any], tmp_path: Path, clock: Any) -> None:
    out = tmp_path / "runs"
    first = fulltune.run(job, out=out)
    assert first.chat_date == date(2026, 3, 1)
    assert load_config(out / first.run_id / "config.yaml").data.chat_date == date(2026, 3, 1)
    clock.day = date(2026, 4, 20)
    again = fulltune.evaluate(first.run_id, out=out)
    assert again.chat_date == date(2026, 3, 1)
    assert again.scores["bits_per_byte"].value == pytest.approx(first.scores["tuned"]["bits_per_byte"].value, rel=1e-6)
    other = fulltune.evaluate(first.run_id, job, out=out)
    assert other.chat_date == date(2026, 3, 1)
    base = fulltune.evaluate(job["model"], job, out=out)
    assert base.chat_date == date(2026, 4, 20)
    entries = len(list((out / "cache").iterdir()))
    second = fulltune.run(job, out=out)
    assert second.chat_date == date(2026, 4, 20)
    assert second.scores["zero_shot"] == base.scores
    assert second.scores["zero_shot"] != first.scores["zero_shot"]
    assert len(list((out / "cache").iterdir())) == entries + 3  # zero-shot, few-shot and n-gram of another date


def test_a_config_may_set_the_date_and_others_are_unchanged(job: dict[str, Any], tmp_path: Path, clock: Any) -> None:
    named = job | {"data": job["data"] | {"chat_date": "2025-12-24"}}
    config = load_config(named)
    task, _ = checked_task_and_method(config)
    base = load_model(config, task, tmp_path)
    assert with_current_chat_date(config, task, base).data.chat_date == date(2025, 12, 24)
    plain = replace(base, tokenizer=fakes.llama_tokenizer())
    assert with_current_chat_date(load_config(job), task, plain).data.chat_date is None
    task, data = dataset.prepare(config, task)
    key = cache_parts(task, config, base, data.train.table, data.eval.table)
    assert json.dumps(key)  # plain values


def test_an_answer_for_the_same_wording_on_another_date_differs() -> None:
    made = bundle(DATED)
    a, b = (prompts.prompt_ids(made, Wording(chat=True, day=day), "hi") for day in (date(2026, 1, 1), date(2026, 1, 2)))
    assert a != b
    task = CausalLM(Config(model="m", task="causal-lm", data={"train": "t", "chat_date": "2026-01-01"}))
    assert task.day == date(2026, 1, 1)


#: As in SmolVLM: a plain text is iterated over by characters, and nothing of it is written.
PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
)


@pytest.mark.parametrize(
    "template", [PARTS, "{% for m in messages %}{{ m.role }}:{{ m.content[0].text }}\n{% endfor %}"]
)
def test_a_template_that_reads_parts_gets_them(template: str) -> None:
    made = bundle(template)
    assert text(template, date(2026, 1, 1)).strip() == "user:hi"
    ids = prompts.prompt_ids(made, Wording(chat=True), "hello")
    assert made.tokenizer.decode(ids).strip().endswith("user:hello")
    assert "list of parts" in chat.content_fact(made, "auto", date(2026, 1, 1))
    assert chat.content_fact(made, "off", date(2026, 1, 1)) == ""
    for plain in (TURNS, "{% for m in messages %}{{ m.content|upper }}{% endfor %}"):
        assert chat.content_fact(bundle(plain), "auto", date(2026, 1, 1)) == ""


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['role'] }}: {{ m['text'] }}{% endfor %}", "drops the user's text"),
        ("You are helpful.", "drops the user's text"),
        ("{% for m in messages %}{{ m.content[:3] }}{% endfor %}", "drops the user's text"),
        ("{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}", "drops the user's text"),
        ("{% for t in tools %}{{ t }}{% endfor %}" + TURNS, "needs tools, which rows do not have"),
        ("{{ documents|length }}" + TURNS, "needs documents, which rows do not have"),
    ],
)
def test_a_template_that_drops_the_text_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ModelError, match=rf"the chat template of 'fake-llama' fails \(it {reason}"):
        chat.check_template(bundle(template), "auto", date(2026, 1, 1))


def test_a_template_that_drops_earlier_turns_causes_a_warning() -> None:
    with pytest.warns(UserWarning, match="few-shot prompts lack their shots"):
        chat.check_template(bundle("{{ messages[-1]['content'] }}"), "auto", date(2026, 1, 1))
