"""The learning curve on tiny models: nested subsets, the same number of steps, an extrapolation or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.cli.render import runs
from fulltune.errors import ConfigError
from fulltune.experiments import learning_curve as more_data
from fulltune.experiments.learning_curve import learning_curve, nested
from fulltune.records.learning_curve import LearningCurve
from fulltune.tasks.base import Example

WORDS = ("court", "state", "party", "term", "film", "good", "great", "red", "blue", "green", "cat", "dog")


def rows(start: int, count: int) -> list[dict[str, Any]]:
    random, found = np.random.default_rng(start), []
    for row in range(start, start + count):
        words = random.choice(WORDS, 12).tolist()
        label = "yes" if words.count("court") + words.count("film") > 1 else "no"
        found.append({"text": f"{' '.join(words)} {row}", "label": label})
    return found


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    data = {}
    for name, start, count in (("train", 0, 96), ("eval", 96, 32)):
        data[name] = str(tmp_path / f"{name}.jsonl")
        Path(data[name]).write_text("".join(json.dumps(row) + "\n" for row in rows(start, count)))
    fakes.save("bert", tmp_path / "bert")
    return {
        "model": str(tmp_path / "bert"),
        "task": "classification",
        "data": data,
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 3e-3},
        "baselines": {"few_shot": 2},
        "evaluation": {"resamples": 200},
    }


def test_subsets_are_nested_and_the_same_for_the_same_seed() -> None:
    examples = [Example(str(row), "", "") for row in range(100)]
    parts = nested(examples, seed=1)
    assert [len(part) for part in parts] == [12, 25, 50, 100]
    for small, large in pairwise(parts):
        assert {example.id for example in small} < {example.id for example in large}
    assert parts == nested(examples, seed=1) != nested(examples, seed=2)
    assert [len(part) for part in nested(examples[:20], seed=1)] == [8, 10, 20]
    assert [len(part) for part in nested(examples[:5], seed=1)] == [5]


def test_every_subset_has_the_same_steps_and_only_its_own_rows(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    fit = more_data.fit

    def watched(bundle: Any, method: Any, features: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        result = fit(bundle, method, features, *args, **kwargs)
        seen.append((len({one.row_id for one in features}), result.training.steps))
        return result

    monkeypatch.setattr(more_data, "fit", watched)
    found = learning_curve(job, out=tmp_path / "runs")
    assert seen == [(12, 12), (24, 12), (48, 12), (96, 12)]
    assert [point.rows for point in found.points] == [12, 24, 48, 96]
    assert {point.score.n for point in found.points} == {32}
    assert (found.metric, found.direction, found.steps) == ("macro_f1", "higher", 12)
    assert (found.verdict == "more data helps") == (found.doubled is not None and found.doubled.low > 0)
    assert not list((tmp_path / "runs").glob("*/config.yaml"))
    assert LearningCurve.model_validate_json(found.to_json()).to_json() == found.to_json()


def test_validation_rows_keep_each_subset_from_overfitting(job: dict[str, Any], tmp_path: Path) -> None:
    job["data"]["valid"] = 0.25
    found = learning_curve(job | {"train": job["train"] | {"evaluations": 2, "max_steps": 4}}, out=tmp_path / "runs")
    assert 60 <= found.points[-1].rows < 90
    assert len(found.points) == 4


def curve(low: float, high: float) -> LearningCurve:
    score = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 50}
    return LearningCurve(
        task="classification",
        model="m",
        metric="macro_f1",
        direction="higher",
        steps=100,
        confidence=0.95,
        points=tuple({"rows": count, "score": score} for count in (25, 50, 100, 200)),  # type: ignore[arg-type]
        doubled={"rows": 400, "value": 0.05, "low": low, "high": high, "exponent": 0.3},  # type: ignore[arg-type]
        verdict="undecided",
        headline="The headline.",
    )


def test_the_curve_is_printed_for_people() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(runs.learning_curve(curve(-0.1, 0.2)))
    console.file.close()
    shown = console.export_text()
    assert "The headline." in shown
    assert "200" in shown
    assert "trained for 100 steps" in shown


def test_the_command_answers_in_json(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job))
    options = ["--learning-curve", "--json", "--quiet", "--out", str(tmp_path / "runs"), "--set", "train.max_steps=2"]
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "job.json"), *options])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["steps"] == 2
    assert len(shown["points"]) == 4
    assert shown["headline"]


def test_what_stops_a_run_stops_the_curve(job: dict[str, Any], tmp_path: Path) -> None:
    job["regularize"] = {"dropout": 0.0, "r_drop": 1.0}
    with pytest.raises(ConfigError, match="R-Drop without dropout"):
        learning_curve(job, out=tmp_path / "runs")
