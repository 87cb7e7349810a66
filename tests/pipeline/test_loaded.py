"""A loaded model answers texts as its run did: the same labels, probabilities and texts, whatever the batch."""

from __future__ import annotations

from typing import Any
from unittest import mock

import fakes
import numpy as np
import pytest
import torch
from answering import Run
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

import fulltune
from fulltune.config import SamplingConfig
from fulltune.errors import ConfigError, DataError, StoreError
from fulltune.models import inference
from fulltune.pipeline.ask import ask
from fulltune.serve.server import server_of
from fulltune.tasks.class_probabilities import BATCH_ERROR, DECIMALS, is_settled


def test_labels_and_probabilities_are_those_of_the_run(classes: Run) -> None:
    model = fulltune.load(classes.record)
    answers = model([row["body"] for row in classes.rows])
    assert [answer["prediction"] for answer in answers] == [one.output for one in classes.predictions]
    confident = [answer["probabilities"][answer["prediction"]] for answer in answers]
    assert confident == [one.values["confidence"] for one in classes.predictions]
    assert all(set(answer["probabilities"]) == {"law", "film", "tale"} for answer in answers)
    assert all(abs(sum(answer["probabilities"].values()) - 1) < 1e-3 for answer in answers)
    assert repr(model) == f"<{classes.record.run_id}: classification by BertForSequenceClassification>"


@given(data=st.data())
def test_an_answer_does_not_depend_on_its_batch(classes: Run, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 9))
    chosen = data.draw(st.lists(st.sampled_from(range(len(classes.rows))), min_size=1, max_size=9))
    model = _loaded(classes, size)
    known = _loaded(classes, 5)([row["body"] for row in classes.rows])
    assert model([classes.rows[place]["body"] for place in chosen]) == [known[place] for place in chosen]


_models = dict[tuple[str, int], fulltune.LoadedModel]()


def _loaded(run: Run, size: int) -> fulltune.LoadedModel:
    key = run.record.run_id, size
    if key not in _models:
        _models[key] = fulltune.load(run.record, evaluation={"batch_size": size})
    return _models[key]


def test_several_labels_per_text_are_a_list(several: Run) -> None:
    answers = fulltune.load(several.record)([row["text"] for row in several.rows])
    assert [answer["prediction"] for answer in answers] == [list(one.output) for one in several.predictions]
    assert [answer["probabilities"] for answer in answers] == [
        one.values["probabilities"] for one in several.predictions
    ]


@pytest.mark.parametrize("size", [1, 3, 16])
def test_queries_are_those_of_the_run(queries: Run, size: int) -> None:
    model = fulltune.load(queries.record, evaluation={"batch_size": size})
    answers = model(queries.rows)
    assert [answer["sql"] for answer in answers] == [one.output for one in queries.predictions]
    assert [answer["prediction"] for answer in answers] == [answer["sql"] for answer in answers]
    [alone] = model([queries.rows[0]["question"]], database=queries.rows[0]["db_id"])
    assert alone == answers[0]
    with pytest.raises(ConfigError, match=r"2 databases; expected the database to ask.*park, zoo"):
        model("who?")


@pytest.mark.parametrize("size", [1, 16])
def test_continuations_are_those_of_the_run(tales: Run, size: int) -> None:
    continued = [one for one in tales.predictions if "opening" in one.values]
    assert len(continued) == 3
    model = fulltune.load(tales.record, evaluation={"batch_size": size})
    answers = model([one.values["opening"] for one in continued])
    assert [answer["text"] for answer in answers] == [one.output for one in continued]


def test_continuations_are_drawn_by_the_seed_and_the_text_alone(tales: Run) -> None:
    texts = ["the old", "a house", "the old", "one more"]
    before = torch.random.get_rng_state()

    def drawn(*inputs: str, **options: Any) -> list[str]:
        model = fulltune.load(tales.record, generation={"temperature": 1.0, **options})
        return [answer["text"] for answer in model(list(inputs))]

    first = drawn(*texts)
    assert first[0] == first[2]
    assert drawn(texts[3], texts[0]) == [first[3], first[0]]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn(*texts, seed=1) != first != [answer["text"] for answer in fulltune.load(tales.record)(texts)]
    greedy = [answer["text"] for answer in fulltune.load(tales.record)(texts)]
    assert drawn(*texts, top_p=1e-9) == greedy  # a nucleus of the most likely token
    asked = ask("the old", tales.record, overrides=["generation.temperature=1.0"])
    assert asked.answers["tuned"].output == first[0]


def test_tokens_are_drawn_by_their_probability() -> None:
    bundle = fakes.bundle("gpt2")
    prompt = [5, 6, 7]
    with torch.inference_mode():
        logits = bundle.model(torch.tensor([prompt])).logits[0, -1]
    for temperature in (0.5, 2.0):
        counts = torch.zeros_like(logits)
        for seed in range(400):
            settings = SamplingConfig(temperature=temperature, seed=seed)
            with mock.patch.object(inference, "_until_stop", lambda bundle, row, stops, limit: row):
                [row] = inference.drawn(bundle, [prompt], 1, settings)
            counts[row[0]] += 1
        expected = torch.softmax(logits / temperature, -1)
        likely = expected > 0.02
        assert torch.allclose(counts[likely] / 400, expected[likely], atol=0.08)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"top_p": 0.9}, "top_p has no effect while generation.temperature is 0"),
        ({"seed": 3}, "seed has no effect while generation.temperature is 0"),
        ({"temperature": -1}, "at least 0"),
    ],
    ids=str,
)
def test_a_draw_without_effect_is_refused(tales: Run, options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        fulltune.load(tales.record, generation=options)


def test_answers_and_servers_are_greedy(classes: Run, tales: Run) -> None:
    with pytest.raises(ConfigError, match=r"0\.8, while the task is classification"):
        fulltune.load(classes.record, generation={"temperature": 0.8})
    with pytest.raises(ConfigError, match="a server answers greedily"):
        server_of(tales.record.folder, None, "runs", (), {"generation": {"temperature": 0.8}})


def test_a_run_is_named_in_every_way(classes: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = classes.record.folder
    text = classes.rows[0]["body"]
    expected = fulltune.load(classes.record)(text)
    assert isinstance(expected, dict)
    monkeypatch.chdir(folder.parent.parent)
    for name in (folder, str(folder), folder.name[:20], "latest"):
        assert fulltune.load(name)(text) == expected
    assert fulltune.load(folder.name, out=folder.parent)(text) == expected
    assert fulltune.evaluate(classes.record).scores == fulltune.evaluate("latest").scores
    assert fulltune.compare(classes.record, folder).a == folder.name
    assert fulltune.ask(text, classes.record).answers["tuned"].output == expected["prediction"]
    with pytest.raises(ConfigError, match="0xFF, which is not UTF-8"):
        fulltune.ask("\udcff", classes.record)
    with pytest.raises(ConfigError, match="'gpt2' is neither a run nor a version"):
        fulltune.load("gpt2")
    with pytest.raises(ConfigError, match=r"there is no run in .*none.*fulltune run CONFIG"):
        fulltune.load("latest", out=folder / "none")
    with pytest.raises(ConfigError, match="Did you mean 'latest'"):
        fulltune.load("latst")
    with pytest.raises(ConfigError, match=r"(?s)no baseline 'nosuch'.*one of majority, tfidf"):
        fulltune.predict("latest#nosuch", [{"text": text}])


def test_the_newest_run_can_be_the_base_of_another(classes: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(classes.record.folder.parent.parent)
    plan = fulltune.plan(classes.record.folder / "config.yaml", model="latest", quick=True)
    assert plan.model == "latest"
    with pytest.raises(StoreError, match="there is no run to resume"):
        fulltune.run(resume="latest")


def test_inputs_that_cannot_be_asked_are_all_reported(classes: Run) -> None:
    model = fulltune.load(classes.record)
    assert model([]) == []
    assert model({"body": "good", "label": "law"}) == model("good") == model({"text": "good"})
    assert model("") == model([""])[0]
    for value in (None, 5, b"good"):
        with pytest.raises(DataError, match=f"found {value!r}; expected a text"):
            model(value)
    with pytest.raises(DataError) as caught:
        model(["good", 3, {"other": "x"}, {"body": 4}])
    assert [problem.where for problem in caught.value.problems] == ["input 1", "input 2", "input 3"]
    assert "expected the column 'body'" in str(caught.value)


@given(
    logits=st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=5),
    errors=st.lists(st.floats(-1, 1), min_size=5, max_size=5),
    multi_label=st.booleans(),
)
def test_settled_answers_survive_the_error_of_a_batch(
    logits: list[float], errors: list[float], multi_label: bool
) -> None:
    exact = np.array(logits)
    if not is_settled(exact, multi_label=multi_label):
        return
    moved = exact + 0.9 * BATCH_ERROR * max(1.0, np.abs(exact).max()) * np.array(errors[: len(exact)])
    squash = expit if multi_label else softmax
    assert np.round(squash(moved), DECIMALS).tolist() == np.round(squash(exact), DECIMALS).tolist()
    if multi_label:
        assert ((squash(moved) > 0.5) == (squash(exact) > 0.5)).all()
    else:
        assert moved.argmax() == exact.argmax()


def test_most_answers_need_no_second_pass() -> None:
    draws = np.random.default_rng(0).normal(size=(500, 6)) * 3
    assert np.mean([is_settled(row, multi_label=False) for row in draws]) > 0.85
    assert not is_settled(np.array([1.0, 1.0]), multi_label=False)
    assert not is_settled(np.array([0.0]), multi_label=True)
