"""Real weights, a real SIGKILL in another process, and the same bits after resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real import DATA, real_data

from fulltune.records.run import read_record
from fulltune.runtime.files import file_sha256
from fulltune.store.runs import list_runs, status

pytestmark = real_data

JOB = {
    "model": "starter:gpt2",
    "task": "causal-lm",
    "data": {
        "train": str(DATA / "tales" / "en_tales.train.jsonl"),
        "eval": 0.1,
        "valid": 0.1,
        "text": "text",
        "limit": 96,
    },
    "train": {"max_steps": 24, "batch_size": 4, "evaluations": 3},
    "evaluation": {"continuations": 2, "max_new_tokens": 16},
    "checkpoints": {"every": 5},
}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fulltune", "run", *words, "--quiet"]


def outcome(run: Path) -> dict[str, object]:
    names = ("model/model.safetensors", "steps.jsonl", "predictions.jsonl")
    record = read_record(run / "record.json")
    scores = {"scores": record.model_dump_json(include={"scores"})}  # as text, since NaN does not equal itself
    return {name: file_sha256(run / name) for name in names} | scores


@pytest.mark.gate
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = tmp_path / "job.json"
    config.write_text(json.dumps(JOB), encoding="utf-8")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert subprocess.run(command(str(config), "--out", str(whole)), check=False).returncode in (0, 3)
    process = subprocess.Popen(command(str(config), "--out", str(parts)))
    while process.poll() is None and not list(parts.glob("*/checkpoint-10/manifest.json")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (run,) = list_runs(parts)
    assert status(run.path).state == "killed"
    asked = command("--resume", run.run_id, "--out", str(parts))
    assert subprocess.run(asked, check=False).returncode in (0, 3)
    (expected,) = list_runs(whole)
    assert outcome(run.path) == outcome(expected.path)


def test_this_config_resumes_exactly(tmp_path: Path) -> None:
    config = tmp_path / "job.json"
    config.write_text(json.dumps(JOB), encoding="utf-8")
    asked = [sys.executable, "-m", "fulltune", "doctor", "--resume", str(config), "--json"]
    found = subprocess.run(asked, check=True, capture_output=True, text=True)
    assert set(json.loads(found.stdout)["parts"].values()) == {True}
