"""causal-lm: every token once, no attention across documents, end-of-text is learned, bits per byte as in a loop."""

from __future__ import annotations

import math

import fakes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulltune.config import Config
from fulltune.evaluation.evaluate import evaluate
from fulltune.models.bundle import Bundle
from fulltune.tasks.base import Example
from fulltune.tasks.causal_lm import CausalLM, window_count, windows, written_bytes

TALES = [
    "Once there was a fox.",
    "The king had three sons, and the youngest was a fool.",
    "Жили-были старик со старухой.",
]


def make(**data: object) -> CausalLM:
    options = {"train": "t.jsonl", "max_length": 16} | data
    return CausalLM(
        Config(model="m", task="causal-lm", data=options, evaluation={"batch_size": 2, "max_new_tokens": 5})
    )


def examples(texts: list[str]) -> list[Example]:
    return [Example(f"t:{index}", "", text) for index, text in enumerate(texts)]


def test_windows_are_counted_without_making_them() -> None:
    for tokens in range(30):
        for window in range(1, 12):
            made = windows([], [0] * tokens, window, is_given=True)
            assert window_count(tokens, window) == len(made), (tokens, window)


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=120), st.integers(8, 40), st.sampled_from(["gpt2", "llama"]))
def test_windows_hold_every_token_exactly_once_and_the_end(text: str, window: int, kind: str) -> None:
    """The first token is context: a start token with Llama's tokenizer, the first token of the text with GPT-2's."""
    bundle = _BUNDLES[kind]
    features = make(max_length=window).encode(Example("t:0", "", text), bundle)
    learned = [label for item in features for label in item.labels if label != -100]
    assert features[0].input_ids[0] == bundle.tokenizer(text).input_ids[0]
    assert learned == [*bundle.tokenizer(text).input_ids[1:], bundle.tokenizer.eos_token_id]
    assert all(len(item.input_ids) == len(item.labels) <= window for item in features)
    assert all(item.labels[0] == -100 for item in features)


def test_a_later_window_starts_with_the_last_token_of_the_one_before() -> None:
    bundle = _BUNDLES["gpt2"]
    first, second = make(max_length=16).encode(Example("t:0", "", "abcdefghijklmnopqrst"), bundle)[:2]
    assert second.input_ids[0] == first.input_ids[-1]
    assert second.labels[0] == -100 != second.labels[1]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_bits_per_byte_and_perplexity_equal_an_unbatched_loop(kind: str) -> None:
    bundle, task = fakes.bundle(kind), make(max_length=100)
    evaluation = evaluate(task.predictor(bundle, "zero_shot"), examples(TALES), task.metrics, system="zero_shot")
    nll = tokens = 0.0
    for text in TALES:
        ids = bundle.tokenizer(text).input_ids
        with torch.no_grad():
            logits = bundle.model(input_ids=torch.tensor([ids])).logits[0, :-1]
        nll += float(torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[1:]), reduction="sum"))
        tokens += len(ids) - 1
    scores = evaluation.scores(task.config.evaluation)
    # GPT-2's tokenizer adds no start token: the first token of a text (a byte) is not predicted, and not counted.
    given = 1 if kind == "gpt2" else 0
    size = sum(len(text.encode()) - given for text in TALES)
    assert scores["bits_per_byte"].value == pytest.approx(nll / math.log(2) / size, rel=1e-5)
    assert scores["perplexity"].value == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert scores["bits_per_byte"].n == len(TALES)


def test_shots_precede_the_text_and_are_not_scored() -> None:
    bundle, task = fakes.bundle("gpt2"), make(max_length=64)
    [plain] = task.predictor(bundle, "zero_shot")(examples(TALES[:1]))
    [shown] = task.predictor(bundle, "few_shot", examples(TALES[1:]))(examples(TALES[:1]))
    assert shown.values["tokens"] == plain.values["tokens"]
    assert shown.values["bytes"] == plain.values["bytes"]
    assert shown.values["nll"] != plain.values["nll"]


@pytest.mark.parametrize("text", ["Жил старик", "🙂 was the answer", "a fox", " space first", "日本"])
def test_bytes_are_scored_if_a_token_predicts_them_also_in_the_middle_of_a_character(text: str) -> None:
    bundle, task = fakes.bundle("gpt2"), make(max_length=64)
    [scored] = task.predictor(bundle, "zero_shot")(examples([text]))
    assert scored.values["tokens"] == scored.values["bytes"] == len(text.encode()) - 1
    assert task.scored_bytes(examples([text])[0], bundle) == (text.encode()[:1], text.encode()[1:])


@pytest.mark.parametrize(("token", "size"), [("<0xE2>", 1), ("ðŁ", 2), ("ĠðŁ", 2), ("æĹ¥", 3)])
def test_bytes_of_a_token_with_a_part_of_a_character(token: str, size: int) -> None:
    assert written_bytes(token, "🙂") == size


def test_a_text_of_one_token_has_nothing_to_score() -> None:
    bundle, task = fakes.bundle("gpt2"), make(max_length=64)
    [one] = task.predictor(bundle, "zero_shot")(examples(["a"]))
    assert (one.values["tokens"], one.values["bytes"]) == (0, 0)


def test_continuations_start_from_the_same_opening_and_include_the_true_one() -> None:
    bundle, task = fakes.bundle("gpt2"), make()
    [zero] = task.predictor(bundle, "zero_shot")(examples(["abcdefghijklmnop"]))
    [few] = task.predictor(bundle, "few_shot", examples(TALES))(examples(["abcdefghijklmnop"]))
    assert zero.values["opening"] == few.values["opening"] == "abcdefgh"
    assert zero.values["continuation_reference"] == "ijklm"


@pytest.mark.parametrize(
    ("text", "opening", "reference"),
    [
        ("once there lived a fox", "once there ", "lived a fox"),
        ("one two three", "one", " two three"),  # six characters end in the second word
        ("однажды", "одн", "ажды"),
    ],
)
def test_an_opening_ends_with_a_complete_word(text: str, opening: str, reference: str) -> None:
    [found] = make().predictor(fakes.bundle("gpt2"), "zero_shot")(examples([text]))
    assert found.values["opening"] == opening
    assert reference.startswith(found.values["continuation_reference"])


def test_random_documents_of_every_folder_are_continued() -> None:
    bundle = fakes.bundle("gpt2")
    rows = [Example(f"{i:02}", "", f"text {i}", part="epics" if i < 20 else f"tales {i % 3}") for i in range(30)]

    def continued(seed: int | None, given: list[Example]) -> list[str]:
        data = {"train": "t.jsonl", "seed": seed}
        task = CausalLM(Config(model="m", task="causal-lm", data=data, evaluation={"continuations": 4}))
        return [one.id for one in task.predictor(bundle, "zero_shot")(given) if "opening" in one.values]

    first = continued(None, rows)
    parts = {row.id: row.part for row in rows}
    assert sorted(parts[row] for row in first) == ["epics", "tales 0", "tales 1", "tales 2"]
    assert continued(None, rows[::-1]) == first[::-1]  # whatever the order of the rows is
    assert len({tuple(continued(seed, rows)) for seed in range(4)}) > 1
    assert len(continued(None, rows[:2])) == 2


@pytest.mark.parametrize(
    ("text", "opening", "reference"),
    [("ж" * 7, "ж" * 3, "ж" * 3), ("e\u0301" * 5, "e\u0301" * 2, "e\u0301" * 2), ("👍🏽" * 3, "👍🏽", "👍🏽")],
    ids=["cyrillic", "combining", "emoji"],
)
def test_continuations_are_never_divided_inside_a_character(text: str, opening: str, reference: str) -> None:
    evaluation = {"max_new_tokens": len(reference.encode())}
    task = CausalLM(Config(model="m", task="causal-lm", data={"train": "t.jsonl"}, evaluation=evaluation))
    [prediction] = task.predictor(fakes.bundle("gpt2"), "zero_shot")(examples([text]))
    assert prediction.values["opening"] == opening
    assert prediction.values["continuation_reference"] == reference


def test_only_the_completion_of_a_prompt_is_trained_and_scored() -> None:
    bundle, task = fakes.bundle("gpt2"), make()
    example = Example("t:0", "abc", "xyz")
    [item] = task.encode(example, bundle)
    end = bundle.tokenizer.eos_token_id
    completion = bundle.tokenizer("xyz").input_ids
    assert [label for label in item.labels if label != -100] == [*completion, end]
    assert item.input_ids == [*bundle.tokenizer("abc").input_ids, *completion, end]
    [prediction] = task.predictor(bundle, "zero_shot")([example])
    assert prediction.values["tokens"] == len(completion)
    assert prediction.values["bytes"] == 3


def test_a_chat_template_is_used_where_there_is_one_and_can_be_turned_off() -> None:
    bundle = fakes.bundle("gpt2")
    bundle.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    [item] = make(max_length=100).encode(Example("t:0", "abc", "xyz"), bundle)
    assert bundle.tokenizer.decode(item.input_ids, skip_special_tokens=True) == "<user>abc<assistant>xyz"
    [bare] = make(max_length=100, chat="off").encode(Example("t:0", "abc", "xyz"), bundle)
    assert bundle.tokenizer.decode(bare.input_ids, skip_special_tokens=True) == "abcxyz"


def test_the_middle_of_a_long_prompt_is_cut_and_counted() -> None:
    bundle, task = fakes.bundle("gpt2"), make(max_length=30)
    [item] = task.encode(Example("t:0", "b" + "a" * 50 + "e", "xyz"), bundle)
    assert item.truncated == item.removed["input"] == 52 - 20
    assert bundle.tokenizer.decode(item.input_ids, skip_special_tokens=True) == "baaaaaaa ... aaaaaaexyz"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_completion_longer_than_the_window_is_scored_completely(kind: str) -> None:
    bundle, task = fakes.bundle(kind), make(max_length=fakes.WINDOW)
    row = Example("t:0", "abc", "xyz" * 100)
    [item] = task.encode(row, bundle)
    asked = len(bundle.tokenizer("abc").input_ids)
    assert len(item.input_ids) == bundle.window
    assert item.removed == {"answer": 301 + asked - bundle.window}
    [zero] = task.predictor(bundle, "zero_shot")([row])
    [few] = task.predictor(bundle, "few_shot", [Example("s", "de", "fgh")])([row])
    assert zero.values["tokens"] == few.values["tokens"] == zero.values["bytes"] == 300
    assert few.values["shots"] == 0  # the completion needs all positions
    ids, nll = item.input_ids[:asked] + bundle.tokenizer(row.answer, add_special_tokens=False).input_ids, 0.0
    room = bundle.window - asked - 1
    for start in range(asked, len(ids), room):
        end = min(len(ids), start + room)
        before = ids[:asked] + (ids[start - 1 : start] if start > asked else [])
        with torch.no_grad():
            logits = bundle.model(input_ids=torch.tensor([before + ids[start:end]])).logits[0, len(before) - 1 : -1]
        nll += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:end]), reduction="sum"))
    assert zero.values["nll"] == pytest.approx(nll, rel=1e-5)


_BUNDLES: dict[str, Bundle] = {kind: fakes.bundle(kind) for kind in ("gpt2", "llama")}
