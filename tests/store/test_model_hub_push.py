"""A version is pushed to a hub served on loopback, by the hub library's own code, and loads from there again."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fakes
import hub_client
import pytest
import torch
from huggingface_hub import close_session
from report import samples
from typer.testing import CliRunner, Result

from fulltune.cli.main import app
from fulltune.models.adapters.files import Origin, write
from fulltune.records.export import Export, LogitDifference, Parent, read_export
from fulltune.records.run import ModelInfo
from fulltune.store.objects import checkpoint_sha256
from fulltune.store.registry.register import register_run
from fulltune.store.registry.registry import Registry
from fulltune.store.runs import RunFolder

#: The hub library passes bytes to its HTTP client in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Hub(BaseHTTPRequestHandler):
    """Serve what an upload requests: create a repository, take small files in a commit and large ones separately."""

    place: Path
    asked: list[str]
    refuses: bool

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(self.path)
        if self.refuses:
            return self._send({"error": "no"}, 401)
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.path == "/api/repos/create":
            return self._send({"url": f"{address}/me/tiny", "id": "me/tiny"})
        if self.path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
            uploads = [
                {"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in zip(files, modes, strict=True)
            ]
            return self._send({"files": uploads})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return self._send({"transfer": "basic", "objects": [self._upload(address, one) for one in objects]})
        if "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
            return self._send({"commitUrl": f"{address}/me/tiny/commit/{'a' * 40}", "commitOid": "a" * 40})
        return self._send({"error": self.path}, 404)

    def do_PUT(self) -> None:
        self.asked.append(self.path)
        (self.place / self.path.rpartition("/")[2]).write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self._send({})

    def do_GET(self) -> None:
        self._send({"error": self.path}, 404)

    def _upload(self, address: str, one: dict[str, Any]) -> dict[str, Any]:
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": f"{address}/up/{one['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if "path" in value:
                (self.place / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                (self.place / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (self.place / value["oid"]).rename(self.place / value["path"])

    def _send(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        return None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Hub.place = tmp_path / "hub"
    Hub.asked = []
    Hub.refuses = False
    Hub.place.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    hub_client.connect(monkeypatch, address, tmp_path / "home")
    yield address
    close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def push(out: Path) -> Result:
    command = ["models", "export", "classification-tiny@1", "--push", "me/tiny"]
    return CliRunner().invoke(app, [*command, "--out", str(out), "--json", "--quiet"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    with RunFolder.create(tmp_path / "runs", "one") as folder:
        fakes.save("bert", folder.path / "model", "classification")
        base = ModelInfo(source="me/tiny", sha256="b" * 64, family="encoder", architecture="BertForMaskedLM")
        folder.write_text("config.yaml", "model: tiny\n")
        folder.write_text("record.json", samples.record(run_id="one", model=base).to_json())
    register_run(tmp_path / "runs", tmp_path / "runs" / "one")
    return tmp_path / "runs"


def test_a_version_is_pushed_completely_with_its_card(hub: str, out: Path, tmp_path: Path) -> None:
    done = push(out)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["pushed"] == f"{hub}/me/tiny"
    assert checkpoint_sha256(Hub.place) == checkpoint_sha256(out / "one" / "model")
    card = (Hub.place / "README.md").read_text(encoding="utf-8")
    assert "base_model: me/tiny" in card
    assert Hub.asked[0] == "/api/repos/create"


def test_a_pushed_adapter_names_no_folder_of_this_machine(hub: str, tmp_path: Path) -> None:
    base = ModelInfo(source=str(tmp_path / "bases" / "tiny"), sha256="b" * 64, family="encoder", architecture="Bert")
    with RunFolder.create(tmp_path / "runs", "one") as folder:
        origin = Origin(source=base.source, sha256=base.sha256, method="bitfit")
        write(folder.path / "model", origin, {"peft_type": None}, {"bias": torch.zeros(2)})
        folder.write_text("config.yaml", "model: tiny\n")
        folder.write_text("record.json", samples.record(run_id="one", model=base).to_json())
    register_run(tmp_path / "runs", tmp_path / "runs" / "one")
    done = push(tmp_path / "runs")
    assert done.exit_code == 0, done.stderr
    assert Origin.read(Hub.place) == origin.model_copy(update={"source": "tiny"})
    assert not [path for path in Hub.place.iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert Origin.read(tmp_path / "runs" / "one" / "model") == origin


def test_other_formats_are_pushed_along(hub: str, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "config.yaml").write_text(f"data: {{train: {tmp_path}}}")
    export = Export(
        artifact=str(folder),
        format="onnx",
        task="classification",
        parent=Parent(name="one", sha256="a" * 64, bytes=9),
        bytes=5,
        sha256="b" * 64,
        files={},
        verdict="not worse",
        logits=LogitDifference(rows=1, largest=0.0, relative=0.0, source="evaluation rows"),
        fulltune="0",
        created="",
    )
    (folder / "export.json").write_text(export.to_json())
    registry = Registry(out)
    registry.keep(registry.version("classification-tiny@1"), folder, form="onnx", verdict="not worse")
    done = push(out)
    assert done.exit_code == 0, done.stderr
    pushed = Hub.place / "onnx"
    assert {path.name for path in pushed.iterdir()} == {"model.onnx", "export.json"}
    assert (pushed / "model.onnx").read_bytes() == b"graph"
    assert read_export(pushed) == export.model_copy(update={"artifact": ""})
    assert checkpoint_sha256(Hub.place) == checkpoint_sha256(out / "one" / "model")


def test_a_hub_that_refuses_is_one_message(hub: str, out: Path, tmp_path: Path) -> None:
    Hub.refuses = True
    done = push(out)
    assert done.exit_code == 1
    assert "hf auth login" in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr
