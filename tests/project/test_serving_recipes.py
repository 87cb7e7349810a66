"""Templates for serving on other systems: their fields exist there, and their commands are those of this version."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from fulltune.cli.main import app

SERVING = Path(__file__).parents[2] / "recipes" / "serving"

#: Fields of KServe's predictor (serving.kserve.io/v1beta1), which include those of a pod, and of a container.
PREDICTOR = {
    *("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "timeout", "canaryTrafficPercent", "containers"),
    *("volumes", "serviceAccountName", "nodeSelector", "tolerations", "terminationGracePeriodSeconds"),
}
CONTAINER = {
    *("name", "image", "command", "args", "env", "ports", "resources", "volumeMounts", "securityContext"),
    *("readinessProbe", "livenessProbe", "startupProbe"),
}

#: Options of `vllm serve` in the long form, as its file of arguments takes them.
VLLM = {
    *("model", "served-model-name", "tokenizer", "dtype", "max-model-len", "generation-config", "seed"),
    *("override-generation-config", "gpu-memory-utilization", "tensor-parallel-size", "host", "port", "api-key"),
}


def load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(SERVING / name)


def parsed(words: list[str]) -> dict[str, Any]:
    """Return the parameters of a command line of fulltune."""
    command: Any = typer.main.get_command(app)
    context: Any = None
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    context = command.make_context(name, words)
    found: dict[str, Any] = context.params
    return found


def test_every_template_is_tested() -> None:
    assert sorted(path.name for path in SERVING.iterdir()) == ["kserve.yaml", "vllm.yaml"]


def test_the_inference_service_is_valid() -> None:
    service = load("kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(service) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(service["spec"]) <= {"predictor", "transformer", "explainer"}
    predictor = service["spec"]["predictor"]
    assert set(predictor) <= PREDICTOR
    [container] = predictor["containers"]
    assert set(container) <= CONTAINER
    assert container["name"] == "kserve-container", "the name by which KServe finds the model's container"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in predictor["volumes"]}
    assert mounts == {"runs": "/mnt/fulltune", "token": "/etc/fulltune"}


def test_the_container_starts_a_server_that_its_probes_reach() -> None:
    predictor = load("kserve.yaml")["spec"]["predictor"]
    [container] = predictor["containers"]
    assert container["command"] == ["fulltune"]
    options = parsed(container["args"])
    [port] = container["ports"]
    assert options["port"] == port["containerPort"] == container["livenessProbe"]["tcpSocket"]["port"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": options["port"]}
    assert options["host"] == "0.0.0.0"
    assert str(options["token_file"]).startswith("/etc/fulltune/")
    assert str(options["model"]).startswith("/mnt/fulltune/")
    assert predictor["terminationGracePeriodSeconds"] > options["timeout"] + 5


def test_the_arguments_of_vllm_are_valid() -> None:
    text = (SERVING / "vllm.yaml").read_text(encoding="utf-8")
    [export] = re.findall(r"^# +(fulltune models export .*)$", text, re.MULTILINE)
    options = parsed(shlex.split(export)[1:])
    arguments = load("vllm.yaml")
    assert set(arguments) <= VLLM
    assert arguments["model"] == str(options["to"])
    assert arguments["served-model-name"] == options["name"]
    assert arguments["dtype"] in ("float32", "bfloat16", "float16", "auto")
    assert json.loads(arguments["override-generation-config"]) == {"temperature": 0.0}


@pytest.mark.parametrize("words", [["serve", "x", "--prot", "1"], ["serve"]], ids=["typo", "no-model"])
def test_a_wrong_command_line_would_be_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|missing"):
        parsed(words)
