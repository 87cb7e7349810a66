"""Few-shot with an encoder: the nearest class mean or logistic regression, against scikit-learn."""

from __future__ import annotations

import fakes
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fulltune.config import Config
from fulltune.evaluation.baselines import shot_regression
from fulltune.evaluation.baselines.base import Given
from fulltune.evaluation.baselines.prompted import few_shot
from fulltune.evaluation.baselines.shot_regression import by_regression
from fulltune.tasks.base import Example
from fulltune.tasks.classification import Classification

SHOTS = [Example(f"s:{i}", f"text {i}", "ab"[i % 2]) for i in range(12)]
EVAL = [Example(f"e:{i}", f"row {i}", "ab"[i % 2]) for i in range(8)]


def given(family: str = "bert", shots: list[Example] = SHOTS) -> Given:
    config = Config(model="m", task="classification", data={"train": "t"})
    task = Classification(config).fit(shots, EVAL)
    return Given(task, fakes.bundle(family), config.baselines, shots, (), tuple(shots))


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Give every row features of which a small one has the label, and a large one has nothing to do with it."""
    drawn = np.random.default_rng(0)
    sign = {"a": -1.0, "b": 1.0}
    known = {row.id: np.array([0.3 * sign[str(row.target)], *drawn.normal(0, 1.0, 2), 1.0]) for row in (*SHOTS, *EVAL)}
    monkeypatch.setattr(shot_regression, "vectors", lambda given, rows: iter([known[row.id] for row in rows]))
    return known


def test_regression_answers_where_it_is_better(features: dict[str, np.ndarray]) -> None:
    found = few_shot(given(), EVAL)
    assert found.setting.startswith("logistic regression, C = ")
    strength = float(found.setting.split()[4])
    units = {row: vector / np.linalg.norm(vector) for row, vector in features.items()}
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(np.stack([units[row.id] for row in SHOTS]), [row.target for row in SHOTS])
    wanted = model.predict(np.stack([units[row.id] for row in EVAL]))
    answers = list(found.predictions)
    assert [one.output for one in answers] == list(wanted)
    assert {one.values["shots"] for one in answers} == {12}


def test_the_nearest_mean_answers_where_it_is_as_good(
    features: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in (*SHOTS, *EVAL):
        features[row.id] = np.array([-1.0 if row.target == "a" else 1.0, 0.1, 0.0, 0.0])
    assert by_regression(given(), EVAL) is None
    assert few_shot(given(), EVAL).setting == ""


def test_other_models_and_single_shots_have_no_choice(features: dict[str, np.ndarray]) -> None:
    assert by_regression(given("gpt2"), EVAL) is None
    assert by_regression(given(shots=SHOTS[:2]), EVAL) is None
    assert by_regression(given(shots=SHOTS[:1]), EVAL) is None
