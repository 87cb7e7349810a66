"""The baseline TF-IDF: a linear SVM, against scikit-learn, and the choice of its strength on train alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as with_any
from hypothesis import settings
from hypothesis import strategies as some
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from fulltune.config import BaselineConfig, Config
from fulltune.evaluation.baselines import labels, text_svm
from fulltune.evaluation.baselines.base import Given
from fulltune.tasks.base import Example
from fulltune.tasks.classification import Classification

KINDS = [("court law", "law"), ("film star", "film"), ("court state", "law"), ("film good", "film"), ("a cat", "pet")]
TRAIN = [Example(f"t:{i}", f"{words} number {i}", label) for i, (words, label) in enumerate(KINDS * 6)]
EVAL = [Example("e:0", "the court", "law"), Example("e:1", "a film", "film"), Example("e:2", "two cats", "pet")]


def answered(train: list[Example], asked: list[Example], groups: list[str] | None = None) -> list:
    return list(computed(train, asked, groups).predictions)


def computed(train: list[Example], asked: list[Example], groups: list[str] | None = None):
    task = Classification(Config(model="m", task="classification", data={"train": "t"})).fit(train, asked)
    return text_svm.tfidf(Given(task, None, BaselineConfig(), train, groups or ()), asked)  # type: ignore[arg-type]


def test_answers_equal_those_of_scikit_learn_and_confidence_is_a_softmax() -> None:
    found = computed(TRAIN, EVAL)
    strength = float(found.setting.split()[2])
    model = make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
        ),
        LinearSVC(C=strength, dual=True, tol=1e-6),
    )
    model.fit([row.input for row in TRAIN], [row.target for row in TRAIN])
    predictions = list(found.predictions)
    asked = [row.input for row in EVAL]
    assert [one.output for one in predictions] == list(model.predict(asked))
    decisions = model.decision_function(asked)
    # One scale explains all confidences.
    scales = np.geomspace(0.01, 60, 4000)
    confidences = np.exp(scales[:, None, None] * (decisions - decisions.max(axis=1, keepdims=True)))
    apart = 1 / confidences.sum(axis=2) - np.array([one.values["confidence"] for one in predictions])
    assert np.abs(apart).max(axis=1).min() < 0.02
    assert found.setting.endswith("(3-fold cross-validation on train)")


def test_several_labels_and_labels_that_train_lacks() -> None:
    train = [Example(row.id, row.input, (str(row.target), "always")) for row in TRAIN]
    [prediction] = answered(train, [Example("e:0", "court law", ("law", "new"))])
    assert prediction.output == ("always", "law")
    assert prediction.values["probabilities"]["new"] == 0.0
    assert prediction.values["probabilities"]["film"] < 0.5


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("😀", "😡"),
        ("a", "b"),
        ("!!", "??"),
        ("很好的电影", "很差的餐厅"),
        ("とても良いです", "ひどいです"),
        ("ก ข", "ค ง"),
        ("👍🏽", "👎🏽"),
        ("+", "-"),
        ("\x01", "\x02"),
    ],
    ids=["emoji", "letters", "marks", "chinese", "japanese", "thai", "skin", "signs", "controls"],
)
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_texts_without_common_words_are_classified_by_their_characters(
    good: str, bad: str, several: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Sentences of a script without spaces are one word each: no two sentences of these rows are equal."""
    ends = [chr(0x4E00 + n) if len(good) > 3 else "" for n in range(24)]
    rows = [(text + end, label) for end in ends for text, label in ((good, "good"), (bad, "bad"))]
    train = [Example(f"t:{n}", text, (label,) if several else label) for n, (text, label) in enumerate(rows[:40])]
    asked = [Example(f"e:{n}", text, (label,) if several else label) for n, (text, label) in enumerate(rows[40:])]
    with caplog.at_level("INFO", "fulltune"):
        predictions = answered(train, asked)
    assert [prediction.output for prediction in predictions] == [example.target for example in asked]
    assert "TF-IDF reads characters only: 0 of 8 rows contain a word of train" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 3, 4], ids=str)
def test_a_few_rows_are_enough(count: int) -> None:
    train = [Example(f"t:{n}", f"{label} {label}s", label) for n, label in enumerate(["law", "film", "pet", "law"])]
    outputs = [one.output for one in answered(train[:count], EVAL)]
    assert set(outputs) <= {row.target for row in train[:count]}


def test_one_label_in_train_is_still_answered() -> None:
    train = [Example(f"t:{i}", f"law {i}", "law") for i in range(4)]
    assert [one.output for one in answered(train, EVAL)] == ["law"] * 3


def test_large_data_is_sampled_with_every_label_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_svm, "CHARACTERS", 300)
    train = [*TRAIN, Example("t:rare", "the rarest of all", "rare")]
    found = computed(train, [*EVAL, Example("e:3", "the rarest", "rare")])
    count, total = found.sampled.removesuffix(" rows of train, drawn at random").split(" of ")
    assert 4 < int(count) < int(total) == 31
    assert list(found.predictions)[3].output == "rare"


def test_probabilities_are_calibrated_on_held_out_rows() -> None:
    """Labels that texts do not explain: the classifier may not be sure of what it learned by heart."""
    random = np.random.default_rng(0)
    words = random.choice(["sun", "rain", "wind", "snow", "fog", "hail"], size=(240, 4))
    rows = [Example(f"t:{n}", " ".join(row), str(random.choice(["a", "b"]))) for n, row in enumerate(words)]
    confidence = [one.values["confidence"] for one in answered(rows[:160], rows[160:])]
    assert 0.5 <= np.mean(confidence) < 0.65


@settings(max_examples=50, deadline=None)
@with_any(some.lists(some.tuples(some.booleans(), some.integers(0, 8)), min_size=1, max_size=60), some.integers(0, 9))
def test_folds_do_not_divide_groups_and_deal_labels_evenly(rows: list[tuple[bool, int]], seed: int) -> None:
    strata = [(label,) for label, _ in rows]
    plain = labels._folds(strata, [], seed)
    for label in set(strata):
        sizes = np.bincount(plain[[one == label for one in strata]], minlength=min(3, len(rows)))
        assert sizes.max() - sizes.min() <= 1
    groups = [str(group) for _, group in rows]
    grouped = labels._folds(strata, groups, seed)
    assert all(len({grouped[n] for n in range(len(rows)) if groups[n] == group}) == 1 for group in set(groups))
    assert set(grouped) == set(range(min(3, len(set(groups)))))
