"""Baselines without training: floors against scikit-learn, honest shots, and a correctly keyed cache."""

from __future__ import annotations

from pathlib import Path

import fakes
import pytest

from fulltune.config import Config
from fulltune.evaluation.baselines import baseline, cached, choose_shots
from fulltune.evaluation.evaluate import evaluate
from fulltune.tasks.base import Example
from fulltune.tasks.causal_lm import CausalLM
from fulltune.tasks.classification import Classification

KINDS = [
    ("court law", "law"),
    ("film star", "film"),
    ("court state", "law"),
    ("film good", "film"),
    ("state law", "law"),
]
TRAIN = [Example(f"t:{i}", f"{words} number {i}", label) for i, (words, label) in enumerate(KINDS * 4)]
EVAL = [Example("e:0", "the court", "law"), Example("e:1", "a film", "film"), Example("e:2", "star film", "film")]


def classification(train: list[Example] = TRAIN, few_shot: int = 2) -> Classification:
    task = Classification(
        Config(model="m", task="classification", data={"train": "t"}, baselines={"few_shot": few_shot})
    )
    task = task.fit(train, [] if any(isinstance(row.target, tuple) for row in train) else EVAL)
    return task


def test_majority_gives_the_most_frequent_label_with_its_fraction() -> None:
    predictions = list(baseline("majority", classification(), fakes.bundle("bert"), TRAIN, ())(EVAL))
    assert [prediction.output for prediction in predictions] == ["law"] * 3
    assert predictions[0].values["confidence"] == pytest.approx(12 / 20)


def test_tfidf_equals_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=30.0, max_iter=1000)
    )
    model.fit([row.input for row in TRAIN], [row.target for row in TRAIN])
    expected = model.predict_proba([row.input for row in EVAL])
    predictions = list(baseline("tfidf", classification(), fakes.bundle("bert"), TRAIN, ())(EVAL))
    assert [p.output for p in predictions] == list(model.classes_[expected.argmax(1)])
    assert [p.values["confidence"] for p in predictions] == pytest.approx(expected.max(1).tolist())


def test_tfidf_with_several_labels_and_labels_that_train_lacks() -> None:
    train = [Example(row.id, row.input, (str(row.target), "always")) for row in TRAIN]
    evaluation = [Example("e:0", "court law", ("law", "new"))]
    task = Classification(Config(model="m", task="classification", data={"train": "t"}))
    task = task.fit(train, evaluation)
    [prediction] = baseline("tfidf", task, fakes.bundle("bert"), train, ())(evaluation)
    assert prediction.output == ("always", "law")
    assert prediction.values["probabilities"]["new"] == 0.0


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
)
@pytest.mark.parametrize("several", [False, True])
def test_texts_without_common_words_are_classified_by_their_characters(
    good: str, bad: str, several: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Sentences of a script without spaces are one word each: no two sentences of these rows are equal."""
    ends = [chr(0x4E00 + n) if len(good) > 3 else "" for n in range(24)]
    rows = [(text + end, label) for end in ends for text, label in ((good, "good"), (bad, "bad"))]
    train = [Example(f"t:{n}", text, (label,) if several else label) for n, (text, label) in enumerate(rows[:40])]
    asked = [Example(f"e:{n}", text, (label,) if several else label) for n, (text, label) in enumerate(rows[40:])]
    task = classification(train)
    with caplog.at_level("INFO", "fulltune"):
        predictions = list(baseline("tfidf", task, fakes.bundle("bert"), train, ())(asked))
    assert [prediction.output for prediction in predictions] == [example.target for example in asked]
    assert "the tfidf baseline uses characters: 0 of 8 rows contain a word of train" in caplog.text


def test_one_label_in_train_is_still_answered() -> None:
    train = [Example(f"t:{i}", f"law {i}", "law") for i in range(4)]
    task = classification(train)
    assert [p.output for p in baseline("tfidf", task, fakes.bundle("bert"), train, ())(EVAL)] == ["law"] * 3


def test_shots_come_from_train_are_seeded_and_never_scored() -> None:
    task = classification()
    leaked = [*EVAL, Example("e:9", TRAIN[0].input, TRAIN[0].target)]
    for family in ("encoder", "decoder"):
        shots = choose_shots(task, task.config.baselines, family, TRAIN, leaked)
        assert shots == choose_shots(task, task.config.baselines, family, TRAIN, leaked)
        assert {shot.id for shot in shots} <= {row.id for row in TRAIN}
        assert not {shot.input for shot in shots} & {row.input for row in leaked}
    other = Config(model="m", task="classification", data={"train": "t"}, baselines={"few_shot": 2, "seed": 18})
    assert shots != choose_shots(task, other.baselines, "decoder", TRAIN, leaked)


def test_an_encoder_gets_shots_per_label_and_a_prompt_cycles_through_the_labels() -> None:
    task = classification(few_shot=3)
    per_label = choose_shots(task, task.config.baselines, "encoder", TRAIN, EVAL)
    assert sorted(str(shot.target) for shot in per_label) == ["film"] * 3 + ["law"] * 3
    prompt = choose_shots(task, task.config.baselines, "decoder", TRAIN, EVAL)
    assert len(prompt) == 3
    assert {str(shot.target) for shot in prompt[:2]} == {"film", "law"}


def test_tasks_without_labels_get_plain_shots() -> None:
    task = CausalLM(Config(model="m", task="causal-lm", data={"train": "t"}, baselines={"few_shot": 2}))
    texts = [Example(f"t:{i}", "", f"tale {i}") for i in range(5)]
    assert len(choose_shots(task, task.config.baselines, "decoder", texts, [])) == 2


def test_the_cache_answers_the_second_time_and_only_for_the_same_key(tmp_path: Path) -> None:
    calls, made = [], []

    def predict(examples):
        calls.append(len(examples))
        return baseline("majority", task, fakes.bundle("bert"), TRAIN, ())(examples)

    task = classification()
    first = list(cached(predict, "majority", {"eval": "a"}, tmp_path, lambda: made.append(1))(EVAL))
    again = list(cached(predict, "majority", {"eval": "a"}, tmp_path, lambda: made.append(1))(EVAL))
    assert first == again
    assert (calls, len(made)) == ([3], 3)
    list(cached(predict, "majority", {"eval": "b"}, tmp_path, lambda: None)(EVAL))
    assert calls == [3, 3]


def test_a_damaged_cache_entry_is_recomputed(tmp_path: Path) -> None:
    task = classification()
    predict = cached(
        baseline("majority", task, fakes.bundle("bert"), TRAIN, ()), "majority", {}, tmp_path, lambda: None
    )
    first = list(predict(EVAL))
    [entry] = (tmp_path / "cache").iterdir()
    entry.write_bytes(entry.read_bytes().replace(b"law", b"lew"))
    assert list(predict(EVAL)) == first


def test_evaluation_scores_stream_and_reach_the_sink_in_order() -> None:
    task, seen = classification(), []
    evaluation = evaluate(
        baseline("majority", task, fakes.bundle("bert"), TRAIN, ()),
        EVAL,
        task.metrics,
        system="majority",
        sink=seen.append,
    )
    assert [prediction.id for prediction in seen] == [row.id for row in EVAL]
    assert evaluation.scores(task.config.evaluation)["accuracy"].value == pytest.approx(1 / 3)
