"""Impossible configs, checkpoints and options are refused before any baseline runs; unchanged weights are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
import torch

import fulltune
from fulltune import Config, ConfigError, NonFiniteError
from fulltune.config import load_config
from fulltune.errors import StoreError
from fulltune.pipeline import run
from fulltune.pipeline.record import unchanged
from fulltune.records.run import Parameters
from fulltune.training.advice import advice
from fulltune.training.methods.proof import largest_change, samples

ROWS = [{"text": f"{'good great film' if n % 2 else 'bad poor movie'} {n}", "label": str(n % 2)} for n in range(24)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fakes.save("bert", tmp_path_factory.mktemp("base") / "bert"))


def config(base: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": base,
        "task": "classification",
        "data": {"train": ROWS, "eval": 0.25},
        "guards": {"forgetting": None},
        "evaluation": {"resamples": 100},
        "baselines": {"few_shot": 1},
        **changes,
    }


def test_a_run_with_unchanged_weights_reports_that_first(base: str, tmp_path: Path) -> None:
    train = {"max_steps": 1, "learning_rate": 1e-11, "warmup": 0, "evaluations": 0}
    record = fulltune.run(config(base, train=train), out=tmp_path)
    assert record.headline.startswith("Raise the rate. Nothing was learned.")
    assert record.data.train.source == "rows in memory"
    assert record.resources.core_seconds is not None
    assert 0 < record.resources.core_seconds < 64 * record.resources.total_seconds
    assert record.data.eval.source == "0.25 held out of rows in memory"
    assert "raise train.learning_rate" in record.reasons[0]
    assert record.parameters.largest_change is not None
    assert record.parameters.largest_change < 1e-6


@pytest.mark.parametrize("name", ["runs", "runs/below/it"])
def test_a_runs_folder_that_cannot_be_written_is_refused_before_the_data_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be written \(Not a directory\).*choose another folder with --out"):
        fulltune.run(config("no-such-model", data={"train": "absent.jsonl"}), out=tmp_path / name)


def test_a_runs_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(StoreError, match=r"cannot be written \(Permission denied\)"):
        fulltune.run(config("no-such-model", data={"train": "absent.jsonl"}), out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_epoch_without_a_batch_is_refused_before_the_baselines(base: str, tmp_path: Path) -> None:
    options = {"train": {"batch_size": 64}, "trainer": {"dataloader_drop_last": True}}
    with pytest.raises(ConfigError, match="no full batch of 64"):
        fulltune.run(config(base, **options), out=tmp_path)
    assert list(tmp_path.glob("*/baselines.json")) == []


def test_class_weights_need_classes(base: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.class_weights.*causal-lm, which has no classes"):
        run.plan({**config(base), "task": "causal-lm", "train": {"class_weights": "balanced"}}, out=tmp_path)


def test_options_that_the_task_does_not_read_are_reported() -> None:
    options = {"data": {"train": "x", "schemas": "s.json"}, "evaluation": {"continuations": 3}}
    options["train"] = {"learning_rate": 3e-5}
    lines = advice(Config(model="m", task="classification", **options), 100, 10**9)
    assert "data.schemas has no effect: the task classification does not read it." in lines
    assert any(line.startswith("evaluation.continuations has no effect") for line in lines)
    other = advice(Config(model="m", task="text2sql", **options), 100, 10**9)
    assert [line.split()[0] for line in other if "no effect" in line] == ["evaluation.continuations"]


def test_the_largest_change_is_relative_to_the_weights_of_its_tensor() -> None:
    model = torch.nn.Linear(4, 2)
    before = samples(model)
    with torch.no_grad():
        model.weight[1, 2] += 0.1
    scale = float(before["weight"].abs().max())
    assert largest_change(before, samples(model)) == pytest.approx(0.1 / scale, rel=1e-5)
    assert largest_change(before, before) == 0.0


@pytest.mark.parametrize(
    ("moved", "change", "says"),
    [
        (1.0, 1e-3, False),
        (0.4, 1e-9, True),
        (0.0, 0.0, True),
        (0.0, None, True),
        (1.0, None, False),
        (1.0, float("nan"), False),
    ],
)
def test_rounding_is_not_a_change(moved: float, change: float | None, says: bool) -> None:
    given = Parameters(total=1, trainable=1, frozen=0, dtype="float32", moved=moved, largest_change=change)
    assert bool(unchanged(given)) is says


@pytest.mark.parametrize(
    "name", ["x" * 300, "a/" + "x" * 300, "/" + "y/" * 3000, "a\0b", "~nobody0/x", "./" + "x" * 300]
)
def test_an_impossible_folder_name_is_a_missing_model(name: str, base: str, tmp_path: Path) -> None:
    with pytest.raises(fulltune.FulltuneError):
        run.plan(config(name), out=tmp_path)


def test_nonfinite_weights_before_training_are_blamed_on_the_checkpoint() -> None:
    assert "The checkpoint is damaged" in str(NonFiniteError(0, "weights", float("nan"), ()))


def test_text_that_is_not_unicode_is_named(base: str) -> None:
    with pytest.raises(ConfigError, match="not Unicode"):
        load_config(config(base) | {"data": {"train": "rows\udcff.jsonl"}})
