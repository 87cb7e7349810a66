"""Prompts that are too long: cut the same way in training and inference, with the instruction kept, and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch

from fulltune.config import Config
from fulltune.errors import ConfigError, ModelError
from fulltune.evaluation.prompt_use import prompt_uses, sentences
from fulltune.models import inference, likelihoods
from fulltune.models.bundle import Bundle
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Task
from fulltune.tasks.causal_lm import CausalLM
from fulltune.tasks.classification import Classification
from fulltune.tasks.prompts import Shot, Wording
from fulltune.tasks.seq2seq import Seq2Seq

#: The template that instruction-tuned decoders ship with, in short.
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def seq2seq(max_new_tokens: int = 8, **data: object) -> Seq2Seq:
    evaluation = {"batch_size": 4, "max_new_tokens": max_new_tokens}
    return Seq2Seq(Config(model="m", task="seq2seq", data={"train": "t", **data}, evaluation=evaluation))


def causal_lm(**data: object) -> CausalLM:
    return CausalLM(Config(model="m", task="causal-lm", data={"train": "t", **data}))


def learned_prompt(task: Task, example: Example, bundle: Bundle) -> list[int]:
    """Return the ids before the first one that has a loss, or a source."""
    [item] = task.encode(example, bundle)
    if bundle.family != "decoder":
        return item.input_ids
    assert isinstance(item.labels, list)
    return item.input_ids[: item.labels.count(-100)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("max_new_tokens", [1, 64, 1000])
@pytest.mark.parametrize("answer", [3, 400])
def test_the_prompt_in_inference_is_that_of_training(kind: str, max_new_tokens: int, answer: int) -> None:
    bundle, task = fakes.bundle(kind), seq2seq(max_new_tokens, instruction="Say it back.", max_length=90)
    for length in (1, 40, 60, 90, 127, 128, 129, 1000):
        row = Example("r", "a" * length, "b" * answer)
        asked = task._prompt(row, bundle)
        assert asked.ids == learned_prompt(task, row, bundle)
        text = bundle.tokenizer.decode(asked.ids, skip_special_tokens=True)
        assert text.startswith("Say it back.\n\n")
        assert bundle.family != "decoder" or text.endswith("\nOutput:")
        whole = prompts.prompt_ids(bundle, task.wording(row, bundle), row.input)
        assert len(asked.ids) + sum(asked.removed.values()) == len(whole)


def test_a_prompt_fills_the_available_positions() -> None:
    """Interpolation finds the longest text that fits, even where the tokens are unevenly distributed."""
    bundle = fakes.bundle("gpt2")
    for text in ("a" * 500, "ж" * 300, "a" * 300 + "ж" * 300, "ж" * 300 + "a" * 300):
        for room in (2, 17, 64, 100):
            fitted = prompts.fit(bundle, Wording(), text, room)
            assert room - 1 <= len(fitted.ids) <= room  # a letter of two bytes may not fit
            ends = prompts.fit(bundle, Wording(keeps_end=True), text, 64)
            kept = bundle.tokenizer.decode(ends.ids, skip_special_tokens=True)
            assert (kept[0], kept[-1]) == (text[0], text[-1])


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_the_schema_is_cut_before_the_question(kind: str) -> None:
    bundle = fakes.bundle(kind)
    wording = Wording("Write SQL.", "Question", "SQL", schema="animal(name text, legs int)" * 20)
    fitted = prompts.fit(bundle, wording, "how many?", 100)
    text = bundle.tokenizer.decode(fitted.ids, skip_special_tokens=True)
    assert text.startswith("Write SQL.\nSchema: animal(name text")
    assert text.endswith("Question: how many?\nSQL:")
    assert set(fitted.removed) == {"schema"}
    tight = prompts.fit(bundle, wording, "how many?" * 20, 60)
    assert set(tight.removed) == {"schema", "input"}


@pytest.mark.parametrize("chat", [True, False])
def test_a_chat_template_is_never_cut(chat: bool) -> None:
    bundle = fakes.bundle("llama")
    bundle.tokenizer.chat_template = CHAT
    fitted = prompts.fit(bundle, Wording("Be brief.", chat=chat), "x" * 500, 80)
    text = bundle.tokenizer.decode(fitted.ids, skip_special_tokens=True)
    assert text.startswith("<user>Be brief.\n\nxxx" if chat else "Be brief.\n\nxxx")
    assert text.endswith("xxx<assistant>" if chat else "xxx")


def test_an_instruction_that_leaves_no_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"words around a row's text take \d+ tokens.*at most 86") as caught:
        seq2seq(instruction="i" * 400).encode(Example("r", "a", "b"), fakes.bundle("gpt2"))
    assert caught.value.problems[0].field == "data.max_length"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
def test_shots_are_left_out_one_by_one_and_counted(kind: str) -> None:
    bundle, task = fakes.bundle(kind), seq2seq()
    shots = [Example(f"s:{n}", "c" * (bundle.window // 5), "d") for n in range(5)]
    rows = [Example("r:0", "a", "b"), Example("r:1", "a" * (bundle.window // 3), "b"), Example("r:2", "a" * 2000, "b")]
    found = list(task.predictor(bundle, "few_shot", shots)(rows))
    counts = [row.values["shots"] for row in found]
    assert counts == sorted(counts, reverse=True)
    assert 5 > counts[0] > counts[1]
    for row, count in zip(rows, counts, strict=True):
        asked = task._prompt(row, bundle, shots)
        assert asked.shots == count
        assert len(asked.ids) <= bundle.window
    use = prompt_uses(found)["few_shot"]
    assert (use.rows, sum(use.shots.values()), use.truncated_rows) == (3, 3, 1)
    assert use.removed_tokens == found[2].values["removed_tokens"] > 0
    cut, fewer = sentences({"few_shot": use}, 5)
    assert cut.startswith("few_shot: 1 of 3 prompts were truncated")
    assert fewer.startswith("few_shot: 3 of 3 prompts had no room for all 5 shots")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart"])
def test_answers_stop_at_the_last_position_and_other_rows_continue(kind: str) -> None:
    bundle = fakes.bundle(kind)
    bundle.model.generation_config.eos_token_id = bundle.model.config.eos_token_id = None
    bundle.tokenizer.eos_token = None  # nothing ends an answer
    prompts_ids = [[5] * length for length in (4, bundle.window, bundle.window - 3, 4)]
    found = list(inference.generate(bundle, prompts_ids, 4, 20))
    if bundle.family == "decoder":
        assert [(answer.tokens, answer.limit) for answer in found] == [(20, None), (1, 1), (4, 4), (20, None)]
    assert all(answer.capped for answer in found)
    [alone] = inference.generate(bundle, prompts_ids[:1], 1, 20)
    assert found[0] == alone
    [longest] = inference.generate(bundle, [[5]], 1, 10 * bundle.window)
    assert longest.tokens == longest.limit == bundle.window


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_an_input_longer_than_the_positions_is_refused(kind: str) -> None:
    bundle = fakes.bundle(kind)
    for ask in (
        lambda: list(inference.generate(bundle, [[5] * 129], 1, 1)),
        lambda: list(likelihoods.likelihoods(bundle, [likelihoods.Text([5] * 129, [6])], 1)),
        lambda: list(likelihoods.likelihoods(bundle, [likelihoods.Text([5], [6] * 129)], 1)),
        lambda: list(inference.sentence_vectors(bundle, [[5] * 129], 1)),
    ):
        with pytest.raises(ModelError, match=r"1(29|30) tokens for fake-.*at most 128, the number of positions"):
            ask()


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert"])
@pytest.mark.parametrize("labels", [("a" * 300, "b"), tuple(f"the label {n}" for n in range(90))])
def test_labels_longer_than_the_window_are_scored(kind: str, labels: tuple[str, ...]) -> None:
    rows = [Example(f"r:{n}", "the fox " * 40, label) for n, label in enumerate(labels)]
    task = Classification(Config(model="m", task="classification", data={"train": "t"}, evaluation={"batch_size": 8}))
    task = task.fit(rows, rows)
    for shots in ((), rows[:2]):
        [found] = task.predictor(fakes.bundle(kind), "s", shots)(rows[:1])
        assert 0 < found.values["confidence"] <= 1


def test_a_long_text_to_continue_keeps_its_end(tmp_path: Path) -> None:
    task = CausalLM(
        Config(model="m", task="causal-lm", data={"train": str(tmp_path)}, evaluation={"max_new_tokens": 500})
    )
    found = task.ask(fakes.bundle("gpt2"), "tuned", "a" * 5000)
    assert found.values["removed_tokens"] == 5000 - (128 - 128 // 3)


def test_a_soft_prompt_uses_positions_of_the_window() -> None:
    from dataclasses import replace

    from fulltune.models.adapters import soft_prompt

    bundle = fakes.bundle("gpt2")
    soft_prompt.attach(bundle.model, torch.zeros(20, fakes.HIDDEN))
    bundle = replace(bundle, window=bundle.window - 20)
    found = list(seq2seq(1000).predictor(bundle, "tuned")([Example("r", "a" * 500, "b")]))
    assert found[0].values["limit"] == 108 - (108 - 36) + 1


def test_one_shot_is_cut_like_the_rows() -> None:
    bundle = fakes.bundle("gpt2")
    fitted = prompts.fit(bundle, Wording("", "Q", "A"), "q", 60, [Shot("s", "t")] * 9, 100)
    assert (fitted.shots, fitted.removed) == (8, {})
    assert len(fitted.ids) == 8 * len("Q: s\nA: t\n\n") + len("Q: q\nA:")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_prompts_with_completions_hold_only_shots_that_leave_positions_for_the_completion(kind: str) -> None:
    bundle = fakes.bundle(kind)
    task = CausalLM(Config(model="m", task="causal-lm", data={"train": "t"}, evaluation={"continuations": 2}))
    rows = [Example("r:0", "a" * 10, "b" * 10), Example("r:1", "a" * 10, "b" * 90)]
    task = task.fit(rows, rows)
    found = list(task.predictor(bundle, "few_shot", [Example(f"s:{n}", "c" * 10, "d" * 10) for n in range(9)])(rows))
    assert [row.values["shots"] for row in found] == [4, 1]
    assert [row.values["tokens"] for row in found] == [10, 90]


def chat_row(turns: int) -> Example:
    """Return the example of a chat with a system's turn and a number of earlier questions with answers."""
    earlier = [(role, f"{role} {n}") for n in range(turns) for role in ("user", "assistant")]
    messages = [("system", "Be brief."), *earlier, ("user", "Who are you?")]
    return Example("r", "Who are you?", "A fox.", {"messages": [list(turn) for turn in messages]})


@pytest.mark.parametrize("make", [seq2seq, causal_lm])
def test_the_prompt_of_a_chat_is_its_turns_in_the_template(make: Callable[..., Seq2Seq | CausalLM]) -> None:
    bundle = replace(fakes.bundle("gpt2"), window=400)
    bundle.tokenizer.chat_template = CHAT
    row, task = chat_row(1), make(max_length=300)
    asked = task.prompt(row, bundle)
    text = "<system>Be brief.<user>user 0<assistant>assistant 0<user>Who are you?<assistant>"
    assert bundle.tokenizer.decode(asked.ids) == text
    assert asked.ids == learned_prompt(task, row, bundle)
    few = task._prompt(row, bundle, [Example("s", "q", "a")])
    assert bundle.tokenizer.decode(few.ids).startswith("<system>Be brief.<user>q<assistant>a<user>user 0")


def test_a_chat_that_is_too_long_loses_its_earlier_turns_first() -> None:
    bundle = fakes.bundle("gpt2")
    bundle.tokenizer.chat_template = CHAT
    cut = causal_lm(max_length=120).prompt(chat_row(9), bundle)
    text = bundle.tokenizer.decode(cut.ids)
    assert text.startswith("<system>Be brief.<user>user ")
    assert text.endswith("assistant 8<user>Who are you?<assistant>")
    assert list(cut.removed) == ["earlier turns"]
    plain = causal_lm(max_length=1000).prompt(chat_row(9), replace(bundle, window=1000))
    assert not plain.removed
    assert len(cut.ids) + cut.removed["earlier turns"] == len(plain.ids)


def test_without_a_template_the_roles_of_a_chat_are_words() -> None:
    bundle, task = fakes.bundle("gpt2"), causal_lm(max_length=120)
    row = replace(chat_row(1), input="User: user 0\nAssistant: assistant 0\n\nUser: Who are you?")
    [learned] = task.encode(row, bundle)
    assert bundle.tokenizer.decode(learned.input_ids, skip_special_tokens=True) == (
        "Be brief.\n\nUser: user 0\nAssistant: assistant 0\n\nUser: Who are you?\nAssistant: A fox."
    )
    single = replace(row, input="Who are you?", meta={})
    assert bundle.tokenizer.decode(task.prompt(single, bundle).ids).endswith("Who are you?")
