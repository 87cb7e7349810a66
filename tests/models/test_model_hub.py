"""A hub id is downloaded from a hub served on loopback: only safe files, by the hub library's own code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fakes
import hub_client
import pytest
from huggingface_hub import close_session

from fulltune.errors import ModelError
from fulltune.models import load

REVISION = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """Serve the parts of the hub's API that a download uses."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/tiny"):
            names = sorted(file.name for file in self.folder.iterdir())
            files = [{"rfilename": name, "path": name, "type": "file", "oid": "0" * 40, "size": 1} for name in names]
            found = files if "/tree/" in path else {"id": "me/tiny", "sha": REVISION, "siblings": files}
            return self._send(json.dumps(found).encode(), {"Content-Type": "application/json"}, body)
        name = path.rpartition("/")[2]
        if not path.startswith("/me/tiny/resolve/") or not (self.folder / name).exists():
            return self.send_error(404)
        self.asked.append(name)
        data = (self.folder / name).read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        return self._send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}, body)

    def _send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        return None


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve a repository, and return the names of the files that were asked for."""
    folder = fakes.save("gpt2", tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody wants")
    (folder / "modeling_evil.py").write_text("raise SystemExit('this must not run')")
    Hub.folder, Hub.asked = folder, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub_client.connect(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "home")
    yield Hub.asked
    close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_id_loads_without_any_pickle_or_code(asked: list[str]) -> None:
    info = load.load("me/tiny").info
    assert (info.source, info.family) == ("me/tiny", "decoder")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(asked)
    assert not {"pytorch_model.bin", "modeling_evil.py"} & set(asked)


@pytest.mark.usefixtures("asked")
def test_a_hub_id_that_does_not_exist_is_reported() -> None:
    with pytest.raises(ModelError, match="could not be downloaded from the hub"):
        load.load("me/other")
