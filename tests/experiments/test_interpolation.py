"""Interpolation between base and tuned model, and the mean of several: exact ends, a choice within the budget."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fakes
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.errors import ConfigError, IncompatibleError, StoreError
from fulltune.experiments.interpolation import Mixture, Point, choose, with_front
from fulltune.records.run import Score

KNOWN = "the king has a red fox and a blue cat"
HEROES, DEEDS = ("dog", "tsar", "hen", "bear"), ("met a court", "sold the state", "has no law", "may sing at noon")
TALES = [f"{index}: the {hero} {deed}, {hero[::-1]}!" for index, (hero, deed) in enumerate(product(HEROES, DEEDS))]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def job(place: Path, kind: str, task: str, **data: Any) -> dict[str, Any]:
    if not (place / kind).exists():
        fakes.save(kind, place / kind)
    rows: list[dict[str, Any]] = [{"text": text} for text in TALES]
    if task == "classification":
        rows = [row | {"label": ("law", "film")[index % 2]} for index, row in enumerate(rows)]
    probe = write(place / "probe.jsonl", [{"text": KNOWN}] * 4)
    split = {"train": write(place / "train.jsonl", rows[:8]), "eval": write(place / "eval.jsonl", rows[8:12])}
    return {
        "model": str(place / kind),
        "task": task,
        "data": split | data,
        "train": {"epochs": 4, "batch_size": 4, "learning_rate": 3e-3, "evaluations": 0},
        "baselines": {"skip": ["few_shot", *(["tfidf", "linear_probe"] if task == "classification" else ["ngram"])]},
        "evaluation": {"resamples": 100, "max_new_tokens": 2, "continuations": 0},
        "guards": {"forgetting": {"probe": probe}, "overfitting": None},
    }


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.mark.filterwarnings("ignore:.*had no room for all")
def test_a_sweep_runs_from_base_to_tuned_model_and_writes_the_chosen_one(tmp_path: Path) -> None:
    record = fulltune.run(job(tmp_path, "gpt2", "causal-lm"), out=tmp_path / "runs")
    found = fulltune.interpolate(record.run_id, alphas=[0.5], out=tmp_path / "runs")
    assert [point.alpha for point in found.points] == [0.0, 0.5, 1.0]
    base, _, tuned = found.points
    assert base.score == record.scores["zero_shot"]["bits_per_byte"]
    assert tuned.score == record.scores["tuned"]["bits_per_byte"]
    assert base.retention["general text"].change == 0.0
    assert tuned.retention == record.retention
    assert (found.chosen_on, found.rows, found.kept_as_tuned) == ("eval", 4, ())
    assert "independent" in found.headline
    chosen = next(point for point in found.points if point.alpha == found.alpha)
    assert chosen.within_budget
    assert found.final["interpolated"] == chosen.score
    run = tmp_path / "runs" / record.run_id
    start, end = weights(tmp_path / "gpt2"), weights(run / "model")
    for name, value in weights(run / "interpolated").items():
        torch.testing.assert_close(value, (1 - found.alpha) * start[name] + found.alpha * end[name])
    AutoModelForCausalLM.from_pretrained(found.model)
    assert (
        fulltune.evaluate(found.model, run / "config.yaml", out=tmp_path / "runs").scores["bits_per_byte"]
        == chosen.score
    )
    assert json.loads((run / "interpolation.json").read_text())["alpha"] == found.alpha
    one, mixed = fulltune.Registry(tmp_path / "runs").versions()
    assert (mixed.lineage.kind, mixed.lineage.parents, mixed.outcome) == ("interpolation", (one.ref,), "unjudged")
    assert (found.version, mixed.metric, mixed.score) == (mixed.ref, "bits_per_byte", chosen.score)
    listed = CliRunner().invoke(app, ["models", "list", "--out", str(tmp_path / "runs")])
    assert (listed.exit_code, "not scored" in listed.stdout) == (0, False)
    with pytest.raises(ConfigError, match=f"model folder without a task.*Use its version {mixed.ref}"):
        fulltune.load(found.model, out=tmp_path / "runs")
    picture = ElementTree.fromstring((run / "interpolation.svg").read_text(encoding="utf-8"))
    texts = [element.text for element in picture.iter() if element.tag.endswith("}text")]
    assert {"α 0", "α 0.5", "α 1", "budget 5.0%"} <= set(texts)


@pytest.mark.filterwarnings("ignore:.*had no room for all")
def test_a_new_head_stays_as_tuned_and_validation_rows_choose(tmp_path: Path) -> None:
    config = job(tmp_path, "bert", "classification")
    valid = write(tmp_path / "valid.jsonl", [{"text": text, "label": "law"} for text in TALES[12:]])
    config["data"]["valid"] = valid
    record = fulltune.run(config, out=tmp_path / "runs")
    found = fulltune.interpolate("latest", alphas=[0.3], out=tmp_path / "runs", to=tmp_path / "mixed")
    assert (found.chosen_on, found.rows) == ("valid", 4)
    assert {"classifier.weight", "classifier.bias"} <= set(found.kept_as_tuned)
    assert not any(name.startswith("bert.encoder") for name in found.kept_as_tuned)
    assert found.final["tuned"] == record.scores["tuned"]["macro_f1"]
    tuned, mixed = weights(tmp_path / "runs" / record.run_id / "model"), weights(tmp_path / "mixed")
    assert torch.equal(mixed["classifier.weight"], tuned["classifier.weight"])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mixed")
    assert set(model.config.id2label.values()) == {"law", "film"}


def test_a_mixture_is_exact_at_its_ends_and_goes_back_and_forth() -> None:
    base, tuned = fakes.bundle("t5"), fakes.bundle("t5", seed=1)
    tuned.model.resize_token_embeddings(len(base.tokenizer) + 3)
    end = {name: value.clone() for name, value in tuned.model.state_dict().items()}
    mixture = Mixture(base, tuned)
    start = dict(base.model.named_parameters())
    for alpha in (0.0, 0.4, 1.0, 0.0):
        for name, value in mixture.at(alpha).model.named_parameters():
            rows = start[name].shape[0]
            torch.testing.assert_close(value[:rows], (1 - alpha) * start[name] + alpha * end[name][:rows])
            assert torch.equal(value[rows:], end[name][rows:])
            if alpha in (0.0, 1.0):
                assert torch.equal(value[:rows], start[name] if alpha == 0 else end[name][:rows])


def point(alpha: float, value: float, loss: float, inside: bool = True) -> Point:
    score = Score(value=value, low=value, high=value, n=4)
    return Point(alpha=alpha, score=score, retention={}, loss=loss, within_budget=inside)


def test_the_choice_is_the_best_score_within_the_budget() -> None:
    points = [point(0, 0.2, 0.0), point(0.5, 0.7, 0.03), point(0.8, 0.7, 0.04), point(1, 0.9, 0.2, inside=False)]
    assert choose(points, "higher").alpha == 0.5
    assert choose(points, "lower").alpha == 0.0
    assert choose([points[0], point(1, math.nan, 0.0)], "higher").alpha == 0.0


def test_the_front_holds_the_nondominated_points() -> None:
    points = [
        point(0, 0.2, 0.0),
        point(0.5, 0.7, 0.03),
        point(0.8, 0.6, 0.04),
        point(1, 0.9, 0.2),
        point(1, math.nan, 0),
    ]
    assert [one.on_front for one in with_front(points, "higher")] == [True, True, False, True, False]


def test_an_alpha_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1\\.5"):
        fulltune.interpolate("latest", alphas=[0.5, 1.5], out=tmp_path)


# ---- Soup ----


def test_a_soup_is_the_mean_of_its_parts(tmp_path: Path) -> None:
    folders = [fakes.save("bert", tmp_path / str(seed), seed=seed) for seed in range(3)]
    found = fulltune.soup([str(folder) for folder in folders], to=tmp_path / "soup")
    parts = [weights(folder) for folder in folders]
    for name, value in weights(tmp_path / "soup").items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean(0))
    assert (found.metric, found.scores) == ("", {})
    assert (tmp_path / "soup" / "tokenizer.json").exists()
    with pytest.raises(StoreError, match="already exists"):
        fulltune.soup([str(folder) for folder in folders], to=tmp_path / "soup")


def test_models_that_differ_cannot_be_averaged(tmp_path: Path) -> None:
    bert, gpt2 = fakes.save("bert", tmp_path / "bert"), fakes.save("gpt2", tmp_path / "gpt2")
    small = fakes.save("bert", tmp_path / "small", tie_word_embeddings=False)
    with pytest.raises(IncompatibleError, match="architectures"):
        fulltune.soup([str(bert), str(gpt2)], to=tmp_path / "soup")
    with pytest.raises(IncompatibleError, match="other tensors: cls"):
        fulltune.soup([str(bert), str(small)], to=tmp_path / "soup")
    with pytest.raises(IncompatibleError, match="1 models"):
        fulltune.soup([str(bert)], to=tmp_path / "soup")
    with pytest.raises(StoreError, match="there is no run"):
        fulltune.soup([str(bert), "nothing"], out=tmp_path / "runs")


@pytest.mark.filterwarnings("ignore:.*had no room for all")
def test_from_the_command_line(tmp_path: Path) -> None:
    config = job(tmp_path, "gpt2", "causal-lm")
    runs = [
        fulltune.run(config | {"train": config["train"] | {"seed": seed, "epochs": 1}}, out=tmp_path / "runs").run_id
        for seed in (1, 2)
    ]
    asked = ["models", "interpolate", runs[0], "--alphas", "0,0.5,1", "--out", str(tmp_path / "runs")]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "α = " in shown.output
    assert "Next: fulltune predict causal-lm-gpt2@" in shown.output
    answer = CliRunner().invoke(app, [*asked, "--json", "--quiet"])
    assert json.loads(answer.stdout)["run_id"] == runs[0]
    wrong = CliRunner().invoke(app, ["models", "interpolate", runs[0], "--alphas", "half", "--out", str(tmp_path)])
    assert wrong.exit_code == 1
    mixed = CliRunner().invoke(app, ["models", "soup", *runs, "--out", str(tmp_path / "runs"), "--json", "--quiet"])
    assert mixed.exit_code == 0, mixed.output
    soup = json.loads(mixed.stdout)
    assert set(soup["scores"]) == {*runs, "soup"}
    assert set(soup["retention"]) == {"general text"}
    assert Path(soup["model"]).parent == tmp_path / "runs"
