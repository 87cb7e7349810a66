"""Baselines without training: the majority, shots that are not scored, and a correctly keyed cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fakes
import pytest

from fulltune.config import BaselineConfig, Config, TrainConfig
from fulltune.errors import ConfigError
from fulltune.evaluation.baselines.base import Answers, Given, allowed_rows
from fulltune.evaluation.baselines.cache import CachedAnswers
from fulltune.evaluation.baselines.catalog import answered_rows, answers, chosen, extent
from fulltune.evaluation.baselines.shots import choose_shots
from fulltune.evaluation.evaluate import evaluate
from fulltune.pipeline.job import checked_task_and_method
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


def given(task: Classification, train: list[Example] = TRAIN) -> Given:
    return Given(task, fakes.bundle("bert"), task.config.baselines, train)


def test_majority_gives_the_most_frequent_label_with_its_fraction() -> None:
    predictions = list(answers("majority", given(classification()), EVAL).predictions)
    assert [prediction.output for prediction in predictions] == ["law"] * 3
    assert predictions[0].values["confidence"] == pytest.approx(12 / 20)


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


def test_shots_are_not_even_nearly_equal_to_scored_rows() -> None:
    long = (
        "the party of the first part shall deliver the goods within {} days of the date on which the order was signed"
    )
    texts = [long.format("ten"), long.format("twelve"), "a film", "the court", "the law of the state"]
    train = [Example(f"t:{n}", text, "law") for n, text in enumerate(texts)]
    scored = [Example("e:0", long.format("TEN"), "film"), Example("e:1", "A film!", "film")]
    task = classification(train, few_shot=5)
    for family in ("encoder", "decoder"):
        shots = choose_shots(task, task.config.baselines, family, train, scored)
        assert {shot.input for shot in shots} == {"the court", "the law of the state"}


def test_documents_without_an_input_are_compared_by_their_text(caplog: pytest.LogCaptureFixture) -> None:
    task = CausalLM(Config(model="m", task="causal-lm", data={"train": "t"}, baselines={"few_shot": 2}))
    train = [Example(f"t:{i}", "", f"the tale of the {kind}") for i, kind in enumerate(["fox", "king"])]
    with caplog.at_level("INFO", "fulltune"):
        shots = choose_shots(task, task.config.baselines, "decoder", train, [Example("e", "", "The tale of the fox.")])
    assert [shot.id for shot in shots] == ["t:1"]
    assert "1 of 2 shots: all other rows of train also occur in the scored rows, at least nearly" in caplog.text


def test_the_cache_answers_the_second_time_and_only_for_the_same_key(tmp_path: Path) -> None:
    calls, made = [], []
    task = classification()

    def answer(examples):
        calls.append(len(examples))
        return Answers(answers("majority", given(task), examples).predictions, "C = 1", "2 of 3 rows")

    def ask(key: str):
        found = CachedAnswers(answer, "majority", {"eval": key}, tmp_path, lambda: made.append(1))
        return list(found.predictions(EVAL)), found.use

    first, computed = ask("a")
    again, read = ask("a")
    assert first == again
    assert (calls, len(made)) == ([3], 3)
    assert (computed.setting, computed.sampled, computed.is_cached) == ("C = 1", "2 of 3 rows", False)
    assert read == computed.model_copy(update={"is_cached": True})
    ask("b")
    assert calls == [3, 3]


def test_the_use_of_a_baseline_is_known_after_its_last_prediction(tmp_path: Path) -> None:
    task = classification()

    def answer(rows):
        return answers("majority", given(task), rows)

    first, second = (CachedAnswers(answer, "majority", {}, tmp_path, lambda: None) for _ in range(2))
    assert list(first.predictions(EVAL))
    predictions = second.predictions(EVAL)
    next(predictions)
    with pytest.raises(RuntimeError, match="not read to their end"):
        _ = second.use
    assert list(predictions)
    assert second.use == first.use.model_copy(update={"is_cached": True})


def test_a_damaged_cache_entry_is_recomputed(tmp_path: Path) -> None:
    task = classification()

    def ask():
        found = CachedAnswers(
            lambda rows: answers("majority", given(task), rows), "majority", {}, tmp_path, lambda: None
        )
        return list(found.predictions(EVAL)), found.use

    first, _ = ask()
    [entry] = (tmp_path / "cache").iterdir()
    entry.write_bytes(entry.read_bytes().replace(b"law", b"lew"))
    again, use = ask()
    assert again == first
    assert not use.is_cached


def test_evaluation_scores_stream_and_reach_the_sink_in_order() -> None:
    task, seen = classification(), []
    evaluation = evaluate(
        lambda rows: answers("majority", given(task), rows).predictions,
        EVAL,
        task.metrics,
        system="majority",
        sink=seen.append,
    )
    assert [prediction.id for prediction in seen] == [row.id for row in EVAL]
    assert evaluation.scores(task.config.evaluation)["accuracy"].value == pytest.approx(1 / 3)


def test_unknown_names_of_skipped_baselines_are_refused() -> None:
    config = Config(
        model="m", task="classification", data={"train": "t"}, baselines={"skip": ["tfdf", "lead", "few_shot"]}
    )
    with pytest.raises(ConfigError) as caught:
        checked_task_and_method(config)
    first, second = caught.value.problems
    assert (first.field, first.found) == ("baselines.skip", "classification has no baseline 'tfdf'")
    assert "tfidf" in first.fix
    assert second.found == "classification has no baseline 'lead'"
    assert "majority, tfidf" in second.expected


def test_skipped_baselines_are_not_run() -> None:
    task = classification()
    settings = task.config.baselines.model_copy(update={"skip": ["tfidf"]})
    assert "tfidf" in chosen(task, task.config.baselines)
    assert chosen(task, settings) == tuple(name for name in task.baselines if name != "tfidf")


def test_the_rows_of_a_baseline_are_a_fraction_of_those_of_the_run() -> None:
    settings, train = BaselineConfig(time=0.1), TrainConfig(epochs=2)
    assert allowed_rows(settings, train, sequences=20_000, scored=5_000) == (3 * 2 * 20_000 + 5_000) // 10
    steps = TrainConfig(epochs=2, max_steps=500, batch_size=8, accumulation=2)
    assert allowed_rows(settings, steps, sequences=20_000, scored=5_000) == (3 * 500 * 16 + 5_000) // 10
    assert allowed_rows(settings, train, sequences=100, scored=5_000) == 1000


def test_few_shot_answers_random_rows_if_all_take_too_long() -> None:
    rows = [Example(f"e:{number}", "text", "law") for number in range(3000)]
    what = replace(given(classification()), rows=2400)
    answered, note = answered_rows("few_shot", what, rows)
    assert note == "1,200 of 3,000 evaluation rows, drawn at random"
    numbers = [int(row.id[2:]) for row in answered]
    assert len(numbers) == 1200
    assert numbers == sorted(set(numbers))
    assert answered_rows("few_shot", what, rows)[0] == answered
    assert answered_rows("zero_shot", what, rows) == (rows, "")
    assert answered_rows("few_shot", replace(what, rows=6000), rows) == (rows, "")
    assert extent("few_shot", what, 1200) == {"answered": 1200}
    assert extent("linear_probe", what, 3) == {"answered": 3, "read": 20}
