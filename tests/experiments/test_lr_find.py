"""The learning rate search: reading a sweep, restoring the weights, and the output of the command."""

from __future__ import annotations

import json
import math
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.errors import ConfigError, DataError
from fulltune.experiments.lr_find import weights_sha256
from fulltune.experiments.range_test import EDGE, SMOOTHING, rates, read, smoothed
from fulltune.pipeline.job import Job
from fulltune.records.learning_rate import LearningRate
from fulltune.report.rates import plot
from fulltune.training.defaults import ModelKind, learning_rate

# ---- Reading a sweep ----


def points(
    loss: Callable[[float], float], noise: float = 0.0, low: float = 1e-7, high: float = 1.0, seed: int = 0
) -> list[tuple[float, float]]:
    drawn = np.random.default_rng(seed).normal(0, noise, 100) if noise else np.zeros(100)
    return [(rate, loss(rate) + float(error)) for rate, error in zip(rates(low, high, 100), drawn, strict=True)]


def valley(rate: float) -> float:
    """Return losses: 2.0 at low rates, falling around 1e-4, lowest near 1e-3, diverging above."""
    return 2.0 - 1.2 / (1 + (1e-4 / rate) ** 2) + 300 * rate**1.5


def test_rates_grow_by_the_same_factor() -> None:
    found = rates(1e-6, 1e-2, 41)
    assert (found[0], found[-1]) == (1e-6, pytest.approx(1e-2))
    assert np.diff(np.log(found)) == pytest.approx(np.full(40, math.log(1e4) / 40))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40))
def test_the_smoothed_loss_is_a_weighted_mean(losses: list[float]) -> None:
    weights = SMOOTHING ** np.arange(len(losses))[::-1]
    assert smoothed(losses)[-1] == pytest.approx(float(np.average(losses, weights=weights)), abs=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
def test_a_valley_gives_candidates_on_its_slope(noise: float) -> None:
    found = read(points(valley, noise, high=3e-2), is_whole=False)
    assert len(found.candidates) == 3
    assert list(found.candidates) == sorted(found.candidates)
    assert found.candidates[0] > 1e-5
    assert found.candidates[-1] < 1e-3
    assert found.reason.startswith("the loss fell fastest near")


@pytest.mark.parametrize(
    ("sweep", "is_whole", "reason"),
    [
        (points(lambda rate: 2.0), True, "the loss is flat"),
        (points(lambda rate: 2.0 + 40 * rate), False, "the loss is flat"),
        (points(lambda rate: 2.0, 0.4), True, "noise alone can make it fall by"),
        (points(lambda rate: -math.log10(rate)), True, "the loss still fell at 1, the highest rate of the sweep"),
        (points(valley)[: 2 * EDGE], False, "training broke after 6 steps"),
    ],
)
def test_without_a_clear_answer_none_is_given(sweep: list[tuple[float, float]], is_whole: bool, reason: str) -> None:
    found = read(sweep, is_whole=is_whole)
    assert found.candidates == ()
    assert found.reason.startswith("no clear answer: ")
    assert reason in found.reason


def test_noise_alone_hardly_ever_gives_an_answer() -> None:
    found = [read(points(lambda rate: 3.0, 0.3, seed=seed), is_whole=True) for seed in range(200)]
    assert sum(bool(one.candidates) for one in found) <= 10


# ---- A complete search ----

WORDS = ("court", "state", "party", "term", "film", "good", "great", "red", "blue", "green", "cat", "dog")


def job(place: Path, kind: str = "bert", rows: int = 60, **train: Any) -> dict[str, Any]:
    """Write rows, clauses whose words reveal the label or tales, and return the config."""
    drawn = random.Random(1)
    lines = []
    for index in range(rows):
        own = WORDS[:6] if index % 2 else WORDS[6:]
        text = " ".join(drawn.choice(own) for _ in range(6))
        lines.append({"text": f"{text} {index}"} | ({"label": ("no", "yes")[index % 2]} if kind == "bert" else {}))
    for name, part in (("train", lines), ("eval", [dict(line, text=f"the {line['text']} law") for line in lines[:20]])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part), encoding="utf-8")
    if not (place / kind).exists():
        fakes.save(kind, place / kind)
    return {
        "model": str(place / kind),
        "task": "classification" if kind == "bert" else "causal-lm",
        "data": {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl"), "allow_leaks": True},
        "train": {"batch_size": 8, "epochs": 4} | train,
    }


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[LearningRate, Path]:
    place = tmp_path_factory.mktemp("search")
    found = fulltune.find_learning_rate(job(place), out=place / "runs", steps=50, confirm_steps=20)
    return found, place


def test_the_advised_rate_has_the_lowest_held_out_loss(searched: tuple[LearningRate, Path]) -> None:
    found, _ = searched
    assert found.rate is not None
    losses = {candidate.rate: candidate.loss for candidate in found.candidates}
    assert len(losses) == 3
    assert losses[found.rate] == min(losses.values()) < found.start
    assert 1e-4 < found.rate < 0.5
    assert found.held_out == 6
    assert found.steps == 20
    assert f"{losses[found.rate]:.4g}" in found.reason
    assert found.line == f"train: {{learning_rate: {found.rate:.1e}}}"
    again = fulltune.load_config({**job(searched[1]), "train": {"learning_rate": f"{found.rate:.1e}"}})
    assert again.train.learning_rate == found.rate


def test_the_plot_is_a_file_of_its_own(searched: tuple[LearningRate, Path]) -> None:
    found, place = searched
    assert list((place / "runs").iterdir()) == [Path(found.plot)]
    root = ElementTree.parse(found.plot).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [text for text in titles if text and text.startswith("rate ")] != []


def test_the_model_and_the_random_numbers_are_as_before(tmp_path: Path) -> None:
    config = job(tmp_path, "gpt2", rows=30)
    files = {path.name: path.read_bytes() for path in (tmp_path / "gpt2").iterdir()}
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = fulltune.find_learning_rate(config, out=tmp_path / "runs", steps=20, confirm_steps=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert {path.name: path.read_bytes() for path in (tmp_path / "gpt2").iterdir()} == files
    model, _ = fakes.gpt2()
    assert found.weights == weights_sha256(model)


def test_validation_rows_are_used_where_there_are_some(tmp_path: Path) -> None:
    config = job(tmp_path, rows=40)
    config["data"]["valid"] = config["data"]["eval"]
    found = fulltune.find_learning_rate(config, out=tmp_path / "runs", steps=14, confirm_steps=2)
    assert found.held_out == 20


@pytest.mark.parametrize("method", ["qlora", "prompt-tuning"])
def test_a_method_that_freezes_the_model_is_supported(method: str, tmp_path: Path) -> None:
    """Check that the weights changed by the sweep are restored and that the model is prepared once."""
    config = job(tmp_path, "gpt2", rows=20) | {"method": method}
    found = fulltune.find_learning_rate(config, out=tmp_path / "runs", steps=14, confirm_steps=2)
    assert len(found.sweep) > 5
    assert found.asked == learning_rate(ModelKind("decoder", fakes.gpt2()[0].num_parameters()), method)


def test_a_hash_detects_one_bit() -> None:
    model, _ = fakes.gpt2()
    before = weights_sha256(model)
    assert weights_sha256(fakes.gpt2()[0]) == before
    with torch.no_grad():
        next(model.parameters()).view(-1)[0].nextafter_(torch.tensor(9.0))
    assert weights_sha256(model) != before


# ---- The answer ----


def test_the_command_prints_a_table_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job(tmp_path)), encoding="utf-8")
    given = []

    def find(config: Any, **options: Any) -> LearningRate:
        given.append(config)
        return answer(tmp_path)

    monkeypatch.setattr("fulltune.experiments.lr_find.find_learning_rate", find)
    monkeypatch.delitem(vars(fulltune), "find_learning_rate", raising=False)
    shown = CliRunner().invoke(app, ["lr-find", str(path), "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert isinstance(given[0], Job)  # rows are read once, by the command
    assert "The loss fell." in shown.output
    assert "1.0e-04" in shown.output
    assert "advised" in shown.output
    assert "train: {learning_rate: 1.0e-04}" in shown.output
    monkeypatch.delitem(vars(fulltune), "find_learning_rate", raising=False)
    titles = CliRunner().invoke(app, ["lr-find", str(path), "--out", str(tmp_path), "--json", "--quiet"])
    assert json.loads(titles.stdout)["rate"] == 1e-4
    vars(fulltune).pop("find_learning_rate", None)


def answer(place: Path) -> LearningRate:
    return LearningRate(
        task="classification",
        model="m",
        rate=1e-4,
        reason="The loss fell.",
        asked=3e-5,
        start=2.0,
        candidates=({"rate": 3e-5, "loss": 1.5}, {"rate": 1e-4, "loss": 1.25}, {"rate": 3e-4, "loss": math.nan}),
        sweep=({"rate": 1e-6, "loss": 2.0, "smoothed": 2.0},),
        held_out=6,
        steps=20,
        weights="0" * 64,
        seconds=1.0,
        plot=str(place / "plot.svg"),
    )


@pytest.mark.parametrize("change", [{"model": "nowhere/at/all"}, {"task": "clasification"}])
def test_what_stops_a_run_stops_the_search(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(fulltune.FulltuneError):
        fulltune.find_learning_rate(job(tmp_path, rows=20) | change, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_wrong_key_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        fulltune.find_learning_rate(job(tmp_path, rows=20, learning_rat=1.0), out=tmp_path / "runs")


def test_too_few_rows_to_compare_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected at least 10.*name data\.valid"):
        fulltune.find_learning_rate(job(tmp_path, "gpt2", rows=4), out=tmp_path / "runs")


def test_a_plot_shows_diverged_trainings_and_escapes_text() -> None:
    drawn = plot([(1e-6, 2.0, 2.0), (1e-5, math.nan, 2.0)], [(1e-6, math.nan)], 1e-6, "a < b & c")
    root = ElementTree.fromstring(drawn)
    assert "training failed" in drawn
    assert any(element.text == "a < b & c" for element in root.iter("{http://www.w3.org/2000/svg}desc"))
    assert "✓" in drawn
