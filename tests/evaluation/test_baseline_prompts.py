"""Labels that a decoder is asked for: the way of asking is chosen on rows of train, and calibrated there."""

from __future__ import annotations

from itertools import product

import fakes
import numpy as np
import pytest
from matrix import often
from scipy.special import softmax

from fulltune.config import Config
from fulltune.evaluation.baselines import prompted
from fulltune.evaluation.baselines.base import Given
from fulltune.evaluation.baselines.catalog import answers
from fulltune.tasks.base import Example
from fulltune.tasks.classification import Classification
from fulltune.tasks.label_words import Asking

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}<assistant> "
TEXTS = ["the film is good", "the court and the law", "a movie", "the state shall pay"]
TRAIN = [Example(f"t:{n}", f"{TEXTS[n % 4]} {n}", ("film", "law")[n % 2]) for n in range(24)]
EVAL = [Example(f"e:{n}", text, ("film", "law")[n % 2]) for n, text in enumerate(TEXTS)]


def given(kind: str = "gpt2", chat: str = "auto", template: bool = True, train: list[Example] = TRAIN) -> Given:
    config = Config(model="m", task="classification", data={"train": "t", "chat": chat})
    bundle = fakes.bundle(kind)
    if template:
        bundle.tokenizer.chat_template = TEMPLATE
    return Given(Classification(config).fit(train, EVAL), bundle, config.baselines, train)


@pytest.mark.parametrize(
    ("kind", "chat", "template", "ways"),
    [
        ("gpt2", "auto", True, [(True, True), (True, False), (False, True), (False, False)]),
        ("gpt2", "off", True, [(False, True), (False, False)]),
        ("gpt2", "auto", False, [(False, True), (False, False)]),
        ("t5", "auto", False, [(False, True), (False, False)]),
    ],
    ids=["chat", "off", "no-template", "encoder-decoder"],
)
def test_the_usual_way_is_tried_first_then_the_others(kind: str, chat: str, template: bool, ways: list) -> None:
    what = given(kind, chat, template)
    scorer = what.task.scorer(what.base)
    assert [(way.chat, way.ends) for way in prompted._ways(scorer, what)] == ways


@pytest.mark.parametrize(
    ("name", "kind"),
    often(
        product(["zero_shot", "few_shot"], ["gpt2", "t5"]),
        lambda case: case in [("zero_shot", "t5"), ("few_shot", "gpt2")],
    ),
)
def test_answers_are_those_of_the_way_that_is_best_on_train(name: str, kind: str) -> None:
    what = given(kind, template=kind == "gpt2")
    shots = TRAIN[:2] if name == "few_shot" else []
    what = Given(what.task, what.base, what.settings, what.train, (), shots)
    scorer = what.task.scorer(what.base)
    rows = [row for row in TRAIN if row not in shots]
    labels = what.task.labels
    best: dict[float, tuple[Asking, np.ndarray]] = {}
    for way in prompted._ways(scorer, what):
        scores = softmax([row for row, _ in scorer.by_likelihood(rows, shots, way)], axis=1)
        empty = [Example("", text, "") for text in ("N/A", "", "[MASK]")]
        free = softmax([row for row, _ in scorer.by_likelihood(empty, shots, way)], axis=1)
        for prior in (np.ones(len(labels)), free.mean(axis=0), scores.mean(axis=0)):
            given_labels = [labels[n] for n in (scores / prior).argmax(axis=1)]
            accuracy = float(np.mean([a == row.target for a, row in zip(given_labels, rows, strict=True)]))
            best.setdefault(accuracy, (way, prior))
    way, prior = best[max(best)]
    found = answers(name, what, EVAL)
    expected = softmax([row for row, _ in scorer.by_likelihood(EVAL, shots, way)], axis=1) / prior
    predictions = list(found.predictions)
    assert [one.output for one in predictions] == [labels[n] for n in expected.argmax(axis=1)]
    confidence = (expected / expected.sum(axis=1, keepdims=True)).max(axis=1)
    assert [one.values["confidence"] for one in predictions] == pytest.approx(confidence.tolist(), abs=1e-3)
    assert found.setting.endswith(f"(accuracy {max(best):.2f} on {len(rows)} rows of train)")
    assert ("chat template" in found.setting) == way.chat
    assert ("without an end token" in found.setting) != way.ends


def test_labels_without_end_tokens_keep_at_least_one_token() -> None:
    what = given()
    scorer = what.task.scorer(what.base)
    end = what.base.tokenizer.eos_token_id
    assert scorer._without_end([5, 6, end]) == [5, 6]
    assert scorer._without_end([end]) == [end]


def test_without_other_rows_than_shots_the_usual_way_is_taken() -> None:
    train = TRAIN[:2]
    what = given(train=train)
    found = answers("few_shot", Given(what.task, what.base, what.settings, train, (), train), EVAL)
    assert found.setting == ""
    assert len(list(found.predictions)) == len(EVAL)


def test_evaluation_rows_choose_nothing() -> None:
    first = answers("zero_shot", given(), EVAL)
    other = answers("zero_shot", given(), [Example("e", "anything else", "law")])
    assert first.setting == other.setting


def test_an_encoder_answers_as_before() -> None:
    what = given("bert", template=False)
    found = answers("zero_shot", what, EVAL)
    assert found.setting == ""
    assert list(found.predictions) == list(what.task.predictor(what.base, "zero_shot")(EVAL))


@pytest.mark.parametrize(
    ("kind", "template", "rows"), [("gpt2", True, 4 * 24), ("gpt2", False, 2 * 24), ("bert", False, 0)],
    ids=["chat", "plain", "encoder"],
)  # fmt: skip
def test_a_plan_knows_how_many_rows_choose(kind: str, template: bool, rows: int) -> None:
    assert prompted.choosing_rows("few_shot", given(kind, template=template)) == rows
