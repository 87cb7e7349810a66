"""Templates for clusters: each is parsed by its own tool and starts an existing command."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from torch.distributed.run import parse_args

from fulltune.runtime.launch import COMMANDS

CLUSTER = Path(__file__).parents[2] / "recipes" / "cluster"

#: Fields allowed by the schemas of Kubeflow Trainer (v1alpha1) and SkyPilot (0.9).
TRAIN_JOB = {"runtimeRef", "trainer", "podTemplateOverrides", "initializer", "labels", "annotations", "suspend"}
TRAINER = {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"}
SKY = {"name", "num_nodes", "resources", "workdir", "file_mounts", "setup", "run", "envs", "secrets", "config"}


def _load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(CLUSTER / name)


def _bash_accepts(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def _torchrun(script: str) -> Any:
    """Return the arguments that torchrun parses from its line in a script, shell variables replaced."""
    joined = script.replace("\\\n", " ")
    line = next(line for line in joined.splitlines() if "torchrun" in line and not line.lstrip().startswith("#"))
    words = shlex.split(line[line.index("torchrun") :])[1:]
    return parse_args([{"--nnodes": "2", "--nproc-per-node": "8"}.get(before, word) for before, word in _pairs(words)])


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(["", *words], words, strict=False))


def test_every_template_is_tested() -> None:
    assert sorted(path.name for path in CLUSTER.iterdir()) == [
        "kubeflow-trainjob.yaml",
        "skypilot.yaml",
        "slurm.sbatch",
    ]


@pytest.mark.parametrize("name", ["slurm.sbatch", "skypilot.yaml"])
def test_torchrun_parses_the_line(name: str) -> None:
    script = _load(name)["run"] if name.endswith(".yaml") else (CLUSTER / name).read_text(encoding="utf-8")
    assert _bash_accepts(script)
    found = _torchrun(script)
    assert (found.nnodes, found.nproc_per_node, found.rdzv_backend, found.max_restarts) == ("2", "8", "c10d", 3)
    assert (found.module, found.training_script) == (True, "fulltune")
    assert found.training_script_args[0] in COMMANDS


def test_the_slurm_script_requests_what_it_uses() -> None:
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in (CLUSTER / "slurm.sbatch").read_text(encoding="utf-8").splitlines()
        if line.startswith("#SBATCH ")
    )
    assert options["nodes"] == "2"
    assert options["ntasks-per-node"] == "1", "torchrun starts the processes of a machine"
    assert options["signal"].startswith("TERM@")
    assert not _bash_accepts("if then")


def test_the_train_job_is_valid() -> None:
    job = _load("kubeflow-trainjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert set(job["spec"]) <= TRAIN_JOB
    trainer = job["spec"]["trainer"]
    (override,) = job["spec"]["podTemplateOverrides"]
    mounts = [mount["mountPath"] for part in override["spec"]["containers"] for mount in part["volumeMounts"]]
    assert mounts == ["/mnt/fulltune"]
    assert all(not word.startswith("/") or word.startswith("/mnt/fulltune/") for word in trainer["args"])
    assert set(trainer) <= TRAINER
    found = parse_args(trainer["args"])
    assert (trainer["command"], found.training_script, found.training_script_args[0]) == (
        ["torchrun"],
        "fulltune",
        "run",
    )


def test_the_sky_task_is_valid() -> None:
    task = _load("skypilot.yaml")
    assert set(task) <= SKY
    assert task["num_nodes"] == 2
    assert list(task["file_mounts"]) == ["/mnt/fulltune"]
    assert _bash_accepts(task["setup"])
