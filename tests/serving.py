"""Servers of tiny models: asked in the same process, or over a port of this machine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.serve.limits import Limits
from fulltune.serve.server import Ready, Server

Result = TypeVar("Result")


def server_of(model: LoadedModel, *, limits: Limits | None = None, **options: Any) -> Server:
    """Return a server of a loaded model, not yet started."""
    return Server(model.name, Path("no-runs"), lambda ref: model, limits=limits, **options)


class Site:
    """A server without a port."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def ask(self, talk: Callable[[httpx.AsyncClient], Awaitable[Result]]) -> Result:
        """Run a conversation with the server."""

        async def run() -> Result:
            transport = httpx.ASGITransport(app=self.server.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await talk(client)

        return asyncio.run(run())

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request."""
        return self.ask(lambda client: client.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Send a value as JSON."""
        return self.request("POST", path, json=body, **options)

    def raw(self, path: str, body: bytes, content_type: str = "application/json") -> httpx.Response:
        """Send bytes."""
        return self.request("POST", path, content=body, headers={"Content-Type": content_type})


@contextmanager
def site(server: Server) -> Iterator[Site]:
    """Start the threads of a server and load its model."""
    server.batcher.start()
    server.models.load()
    yield Site(server)
    server.batcher.close()


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """Run a server on a free port of this machine; yield its address once it answers."""
    is_ready = threading.Event()
    address = list[str]()

    def ready(state: Ready) -> None:
        address.append(state.url)
        is_ready.set()

    with socket.create_server(("127.0.0.1", 0)) as place:
        thread = threading.Thread(target=server.run, args=(place, ready))
        thread.start()
        assert is_ready.wait(60)
        try:
            yield address[0]
        finally:
            server.uvicorn.should_exit = True
            thread.join()


class Gate:
    """Holds a model back until it is opened.

    Args:
        model: The model, whose method ``answer`` waits.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.batches = list[int]()
        self._answer = model.answer
        model.answer = self._wait  # type: ignore[method-assign]

    def _wait(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        self.batches.append(len(examples))
        self.entered.set()
        assert self.opened.wait(60)
        yield from self._answer(examples)


async def until(event: threading.Event) -> None:
    """Wait for an event of another thread."""
    assert await asyncio.to_thread(event.wait, 60)


def rows_file(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
