"""The baseline linear probe: logistic regression on frozen features, against torch and scikit-learn."""

from __future__ import annotations

import fakes
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fulltune.config import Config
from fulltune.evaluation.baselines.base import Given
from fulltune.evaluation.baselines.probe import linear_probe, vectors
from fulltune.tasks.base import Example
from fulltune.tasks.classification import Classification

KINDS = [("the court and the law", "law"), ("a good film", "film"), ("the king and the fox", "tale")]
TRAIN = [Example(f"t:{i}", f"{words} of {words[: i % 7]}", label) for i, (words, label) in enumerate(KINDS * 6)]
EVAL = [Example("e:0", "the law of the court", "law"), Example("e:1", "a film", "film"), Example("e:2", "", "tale")]


def given(family: str, train: list[Example] = TRAIN, max_length: int | None = None) -> Given:
    config = Config(model="m", task="classification", data={"train": "t", "max_length": max_length})
    return Given(Classification(config).fit(train, EVAL), fakes.bundle(family), config.baselines, train)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_features_are_the_mean_state_and_answers_those_of_scikit_learn(family: str) -> None:
    what = given(family)
    bundle = what.base
    body = bundle.model.get_encoder() if family == "t5" else bundle.model.base_model
    ids = torch.tensor([bundle.tokenizer(EVAL[0].input).input_ids])
    with torch.no_grad():
        expected = body(input_ids=ids).last_hidden_state.mean(dim=1)[0]
    assert next(vectors(what, EVAL)) == pytest.approx(expected.numpy(), abs=1e-5)

    found = linear_probe(what, EVAL)
    strength = float(found.setting.split()[2])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
    model.fit(np.stack(list(vectors(what, TRAIN))), [row.target for row in TRAIN])
    outputs = [one.output for one in found.predictions]
    assert outputs == list(model.predict(np.stack(list(vectors(what, EVAL)))))
    assert outputs[0] == "law"


def test_several_labels_are_answered_one_by_one() -> None:
    train = [Example(row.id, row.input, (str(row.target), "text")) for row in TRAIN]
    config = Config(model="m", task="classification", data={"train": "t"})
    what = Given(Classification(config).fit(train, []), fakes.bundle("bert"), config.baselines, train)
    [prediction] = linear_probe(what, [Example("e", "the law of the court", ("law",))]).predictions
    assert prediction.output == ("law", "text")


def test_long_texts_are_truncated_and_rows_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.evaluation.baselines.probe.ROWS", 9)
    what = given("bert", [*TRAIN, Example("t:long", "law " * 500, "law")], max_length=16)
    found = linear_probe(what, EVAL)
    assert found.sampled == "9 of 19 rows of train, drawn at random"
    assert len(list(found.predictions)) == 3
