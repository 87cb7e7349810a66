from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest

from fulltune import Config, ConfigError
from fulltune.tasks.base import Features
from fulltune.training import trackers
from fulltune.training.arguments import training_arguments
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.methods.full import Full

# Trackers emit deprecation warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def _config(report_to: Any) -> Config:
    train = {"max_steps": 3, "batch_size": 2, "learning_rate": 3e-5, "evaluations": 0}
    return Config(
        model="m", task="causal-lm", data={"train": "x"}, train=train, trainer={"report_to": report_to},
        guards={"divergence": None},
    )  # fmt: skip


def _fit(report_to: Any, folder: Path) -> TrainingResult:
    bundle, config = fakes.bundle("gpt2"), _config(report_to)
    ids = [bundle.tokenizer(text).input_ids for text in ("the fox", "a king", "law", "the court")]
    features = [Features(row, list(row), str(number)) for number, row in enumerate(ids)]
    return fit(bundle, Full(config), features, None, config, output_dir=folder)


def test_tensorboard_gets_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    result = _fit("tensorboard", tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    logged = {event.step: event.value for event in board.Scalars("train/loss")}
    assert logged == {step.step: pytest.approx(step.loss) for step in result.steps if step.loss is not None}
    assert len(logged) == 3


def test_mlflow_gets_the_losses_in_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tales")
    _fit(["mlflow"], tmp_path / "run")
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tales")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["loss"] > 0


@pytest.mark.parametrize("asked", ["none", [], "all"])
def test_none_and_all_are_accepted(asked: Any) -> None:
    assert trackers.problems(_config(asked).trainer) == []


def test_a_missing_tracker_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.get_available_reporting_integrations", list)
    with pytest.raises(ConfigError) as raised:
        training_arguments(_config(["tensorbord", "wandb", "trackio"]), tmp_path, 10)
    message = str(raised.value)
    assert len(raised.value.problems) == 3
    assert "there is no tracker 'tensorbord'" in message
    assert "Did you mean 'tensorboard'?" in message
    assert "the tracker wandb is not installed. Install it: pip install wandb" in message
    assert "the tracker trackio is not installed" in message
