"""An interrupted run resumes bit for bit, is refused if anything changed, and the message names the changes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fakes
import pytest
from matrix import often
from transformers import TrainerCallback
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.errors import ConfigError, StoreError
from fulltune.pipeline import resume, train
from fulltune.pipeline.job import prepare_job
from fulltune.pipeline.resume_check import check_resume
from fulltune.store.runs import RunFolder, list_runs, status
from fulltune.tasks import dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "faults"))

import jobs
from jobs import JOBS, outcome

pytestmark = pytest.mark.filterwarnings("ignore:.*had no room for all")


#: Baselines that are left out: nothing is known about them that resuming could lose.
SKIPPED = {"classification": ["tfidf", "linear_probe", "few_shot"], "causal-lm": ["ngram", "few_shot"]}


def job(folder: Path, task: str) -> dict[str, Any]:
    return jobs.job(folder, task) | {"baselines": {"few_shot": 1, "skip": SKIPPED.get(task, [])}}


def runs(out: Path) -> list[Path]:
    return [run.path for run in list_runs(out)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> Callable[[str], dict[str, str]]:
    """Return a function that gives the hashes of an uninterrupted run of a task."""
    known: dict[str, dict[str, str]] = {}

    def get(task: str) -> dict[str, str]:
        if task not in known:
            fulltune.run(job(place, task), out=place / "uninterrupted" / task)
            (folder,) = runs(place / "uninterrupted" / task)
            known[task] = outcome(folder)
        return known[task]

    return get


def stop_before_step(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], object]) -> None:
    """Call ``do`` once, when this optimizer step begins."""
    done = []

    class Now(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step and not done:
                done.append(step)
                do()

    given = train.guards
    monkeypatch.setattr(train, "guards", lambda *args: [*given(*args), Now()])


def die() -> None:
    raise SystemExit


def killed(config: dict[str, Any], out: Path) -> str:
    """Start a run that dies and return its id."""
    with pytest.raises(SystemExit):
        fulltune.run(config, out=out)
    (folder,) = runs(out)
    return folder.name


@pytest.mark.parametrize("task", often(JOBS, lambda task: task == "classification"))
def test_a_run_killed_in_training_ends_like_an_uninterrupted_one(
    task: str, place: Path, uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_before_step(patch, 8, die)
        run = killed(job(place, task), tmp_path)
    assert {path.name for path in tmp_path.glob("*/checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    record = fulltune.run(out=tmp_path, resume=run)
    assert record.run_id == run
    used = record.resources
    assert 0 < used.seconds_before < used.train_seconds <= used.stage_seconds["train"] < used.total_seconds
    assert outcome(tmp_path / run) == uninterrupted(task)
    left = {path.name for path in (tmp_path / run).iterdir()}
    assert not [name for name in left if name.startswith(("checkpoint", "best", ".rollback"))]


def test_a_run_killed_in_evaluation_is_not_trained_again(
    place: Path, uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uninterrupted("classification")
    with monkeypatch.context() as patch:
        patch.setattr("fulltune.pipeline.stages.score_system", lambda *args, **kwargs: die())
        run = killed(job(place, "classification"), tmp_path)
    monkeypatch.setattr("fulltune.pipeline.train.train", lambda *args: pytest.fail("it is trained"))
    used = fulltune.run(out=tmp_path, resume=run).resources
    assert 0 < used.seconds_before == used.train_seconds < used.total_seconds
    assert outcome(tmp_path / run) == expected


def test_a_run_killed_after_its_last_step_keeps_its_best_weights(
    place: Path, uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fulltune.pipeline.finish.finish", lambda *args: die())
        run = killed(job(place, "classification"), tmp_path)
    fulltune.run(out=tmp_path, resume=run)
    assert outcome(tmp_path / run) == uninterrupted("classification")


def test_a_damaged_checkpoint_is_named_in_the_record(
    place: Path, uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_before_step(patch, 8, die)
        run = killed(job(place, "classification"), tmp_path)
    weights = tmp_path / run / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="checkpoint-6 is skipped"):
        record = fulltune.run(out=tmp_path, resume=run)
    assert any("checkpoint-6 is skipped" in line for line in record.warnings)
    found, expected = outcome(tmp_path / run), uninterrupted("classification")
    assert {name for name in found if found[name] != expected[name]} == {"record.json"}


# ---- Signals ----


@pytest.mark.parametrize("number", often([signal.SIGINT, signal.SIGTERM], lambda number: number == signal.SIGTERM))
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(
    number: signal.Signals, place: Path, uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with monkeypatch.context() as patch:
        stop_before_step(patch, 4, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt, match=r"To resume: fulltune run --resume .* --out"):
            fulltune.run(job(place, "classification"), out=tmp_path)
    assert "this step is finished and a checkpoint is written" in capfd.readouterr().err
    (folder,) = runs(tmp_path)
    assert status(folder).state == "stopped"
    assert (folder / "checkpoint-5" / "manifest.json").is_file()
    fulltune.run(out=tmp_path, resume=folder.name)
    assert outcome(folder) == uninterrupted("classification")


def test_the_second_signal_stops_at_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop_before_step(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        fulltune.run(job(place, "classification"), out=tmp_path)
    (folder,) = runs(tmp_path)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_without_checkpoints_a_signal_stops_at_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_before_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        fulltune.run(job(place, "classification") | {"checkpoints": None}, out=tmp_path)
    assert list(tmp_path.glob("*/checkpoint-*")) == []


def test_the_command_line_prints_how_to_resume_and_exits_with_130(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "job.json"
    config.write_text(json.dumps(job(place, "classification")), encoding="utf-8")
    stop_before_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    found = CliRunner().invoke(app, ["run", str(config), "--out", str(tmp_path / "runs"), "--quiet"])
    (folder,) = runs(tmp_path / "runs")
    assert found.exit_code == 130
    assert f"fulltune run --resume {folder.name}" in found.stderr


def test_the_command_line_needs_a_config_or_a_run() -> None:
    found = CliRunner().invoke(app, ["run"])
    assert found.exit_code == 2
    assert "name a config, or a run with --resume" in found.stderr


# ---- Refusals ----


@pytest.fixture(scope="module")
def stopped(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs with one that was killed before its first checkpoint."""
    out = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_before_step(patch, 1, die)
        killed(job(place, "causal-lm"), out)
    return out


def test_every_change_is_named_with_both_values(stopped: Path, place: Path) -> None:
    (folder,) = runs(stopped)
    facts = json.loads((folder / "resume.json").read_text(encoding="utf-8"))
    other = facts | {"major version of torch": "1", "parameters": 7, "tokenizer": "0" * 64, "rows of train": "1" * 64}
    (folder / "resume.json").write_text(json.dumps(other), encoding="utf-8")
    changed = ["train.learning_rate=0.5", "train.seed=4"]
    with pytest.raises(ConfigError) as error:
        fulltune.run(out=stopped, resume=folder.name, overrides=changed)
    (folder / "resume.json").write_text(json.dumps(facts), encoding="utf-8")
    names = {problem.field for problem in error.value.problems}
    assert names >= {"train.learning_rate", "train.seed", "parameters", "tokenizer", "rows of train"}
    assert "major version of torch" in names
    assert "0.5 now; expected 0.001, as when the run began" in str(error.value)
    assert "--allow-changed" in str(error.value)


def test_a_change_can_be_allowed(stopped: Path, place: Path) -> None:
    (folder,) = runs(stopped)
    record = fulltune.run(out=stopped, resume=folder.name, allow_changed=True, overrides=["evaluation.resamples=150"])
    assert record.run_id == folder.name
    with pytest.raises(StoreError, match="this run has ended"):
        fulltune.run(out=stopped, resume=folder.name)


def test_texts_seen_by_a_tokenizer_do_not_change_the_identity_of_a_run(place: Path, tmp_path: Path) -> None:
    config = fulltune.load_config(job(place, "causal-lm"))
    job_at_start = replace(prepare_job(config, tmp_path), base=fakes.bundle("bert"))
    base = job_at_start.base
    with RunFolder.create(tmp_path, "mine") as folder:
        resume.check(folder, job_at_start, False)
        base.tokenizer("the fox and the king", truncation=True, max_length=3, padding="max_length")
        resume.check(folder, job_at_start, False)
        base.tokenizer.add_tokens("dragon")
        with pytest.raises(ConfigError, match="field 'tokenizer'"):
            resume.check(folder, job_at_start, False)


def test_a_run_is_locked_by_one_process(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, "mine")
    with pytest.raises(StoreError, match="another process has locked this run"):
        RunFolder.open(tmp_path / "mine")
    first.close("stopped")
    with RunFolder.open(tmp_path / "mine") as folder:
        assert status(folder.path).state == "running"


def test_a_run_without_a_config_is_reported(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "early").close("failed")
    with pytest.raises(StoreError, match="this run has no config yet"):
        resume.config_to_resume("early", tmp_path)


# ---- doctor --resume ----


#: Everything that has state, draws random numbers or orders rows.
WAYS = {
    "plain": ("causal-lm", []),
    "classes": ("classification", []),
    "pairs": ("seq2seq", []),
    "queries": ("text2sql", []),
    "a budget of tokens, packed": ("causal-lm", ["speed.batch_tokens=64"]),
    "not packed": ("causal-lm", ["speed.packing=off"]),
    "replay": ("causal-lm", ["regularize.replay=0.3"]),
    "penalties": ("causal-lm", ["regularize={l2_sp: 0.1, ewc: 0.1, distill: 0.5, layer_decay: 0.8}"]),
    "two passes": ("classification", ["regularize.r_drop=1.0", "train.label_smoothing=0.1"]),
    "noise": ("causal-lm", ["trainer.neftune_noise_alpha=5"]),
    "recomputed": ("causal-lm", ["train.gradient_checkpointing=true"]),
    "bfloat16": ("classification", ["speed.precision=bf16-mixed"]),
    "8 bits": ("causal-lm", ["train.optimizer=adamw-8bit"]),
    "lora": ("causal-lm", ["method=lora", "adapter={rank: 2, dropout: 0.1}"]),
    "qlora": ("causal-lm", ["method=qlora", "adapter.rank=2"]),
    "prompt": ("classification", ["method=prompt-tuning", "adapter.prompt_tokens=4"]),
    "bitfit": ("classification", ["method=bitfit"]),
    "probe": ("classification", ["method=linear-probe"]),
}

#: Checked in the fast tests; the others are slow. A plain one is that of the command below.
USUAL = ("lora",)


@pytest.mark.parametrize("way", often(WAYS, lambda way: way in USUAL))
def test_a_config_is_proven_to_resume_exactly(way: str, place: Path) -> None:
    task, overrides = WAYS[way]
    found = check_resume(job(place, task), steps=4, overrides=overrides)
    assert (found.steps, found.stopped_at) == (4, 2)
    assert found.parts == dict.fromkeys(("weights", "optimizer", "random numbers", "metrics"), True)


def test_state_that_is_not_restored_is_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.training.checkpoints.manager.set_random_state", lambda state: None)
    found = check_resume(job(place, "causal-lm"), steps=4)
    assert not found.is_exact
    assert not found.parts["random numbers"]


def test_doctor_prints_a_report_for_people(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Mock(wraps=dataset.prepare)
    monkeypatch.setattr(dataset, "prepare", reading)
    config = tmp_path / "job.json"
    config.write_text(json.dumps(job(place, "causal-lm")), encoding="utf-8")
    found = CliRunner().invoke(app, ["doctor", "--resume", str(config), "--steps", "2"])
    assert found.exit_code == 0, found.output
    assert "2 steps, and 1 + resume + 1: equal, bit for bit" in found.stdout
    assert reading.call_count == 1


def test_too_few_steps_are_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="2 at least"):
        check_resume(job(place, "causal-lm"), steps=1)
