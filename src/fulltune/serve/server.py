"""Run a server until it is asked to stop: ``fulltune serve MODEL``."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fulltune.config import ConfigSource
from fulltune.errors import ConfigError
from fulltune.pipeline.baseline_model import parted
from fulltune.pipeline.loaded_model import LoadedModel, unloaded_model
from fulltune.records.run import Record
from fulltune.runtime.signals import handled
from fulltune.serve.access import CONNECTIONS
from fulltune.serve.limits import Limits
from fulltune.store.registry.registry import reference
from fulltune.store.runs import name_and_folder
from fulltune.tasks.text2sql.results import check_queries

#: Seconds that are left, after the time limit of the last request, to write its response.
_SLACK = 5


@dataclass(frozen=True)
class Ready:
    """Facts that a server reports once it answers.

    Attributes:
        url: Its address.
        model: The run or the version.
        task: The task.
        warning: That the run of the model was rejected or stopped, and why; empty for any other model.
    """

    url: str
    model: str
    task: str
    warning: str = ""


def server_of(
    name: str | Path | Record,
    config: ConfigSource | None,
    out: str | Path,
    overrides: Sequence[str],
    options: Mapping[str, Any],
    *,
    token: str = "",
    database: str = "",
    execute: bool = False,
    limits: Limits | None = None,
) -> Server:
    """Return a server of a model, after checking all that needs no model.

    Args:
        name, config, out, overrides, options: As in :func:`fulltune.load`.
        token: Token that requests must carry; may be empty.
        database, execute, limits: As in :func:`fulltune.serve.serve`.

    Raises:
        FulltuneError: There is no such model, or it cannot be asked like this.
    """
    _refuse_baseline(name)
    given, folder = name_and_folder(name, out)
    version = reference(given, folder)
    unloaded = unloaded_model(version.ref if version else name, config, out, overrides, options)
    task = unloaded.task
    if unloaded.config.generation.temperature > 0:
        raise ConfigError(
            f"{unloaded.config.generation.temperature:g}",
            expected="0: a server answers greedily",
            fix="remove it, or use `fulltune predict`",
            field="generation.temperature",
        )
    check_queries(task, execute=execute, database=database)
    if database:
        task.request({task.inputs[0]: "first"}, database)  # an unknown database is an error now, not in every response

    def load(ref: str) -> LoadedModel:
        return unloaded_model(ref if version else name, config, out, overrides, options).load()

    warning = unloaded.warning
    return Server(given, folder, load, token=token, database=database, execute=execute, limits=limits, warning=warning)


def _refuse_baseline(name: str | Path | Record) -> None:
    """Refuse to serve a baseline of a run.

    Raises:
        ConfigError: The name is that of a baseline.
    """
    run, baseline = parted(name)
    if baseline:
        raise ConfigError(
            f"the baseline {baseline!r} of {run}",
            expected="a model to serve",
            fix=f"answer a file with `fulltune predict {name} FILE`, or serve {run}",
        )


class Server:
    """The threads and the application of a server.

    Args:
        name: Name of the model, as given by the user.
        out: Folder of the runs and the registry.
        load: Loads a model by its name or version.
        token: Token that requests must carry; may be empty.
        database, execute, limits: As in :func:`fulltune.serve.serve`.
        warning: Reported once the server answers.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        load: Callable[[str], LoadedModel],
        *,
        token: str = "",
        database: str = "",
        execute: bool = False,
        limits: Limits | None = None,
        warning: str = "",
    ) -> None:
        import uvicorn

        from fulltune.serve.app import create_app
        from fulltune.serve.batching import Batcher
        from fulltune.serve.metrics import Metrics
        from fulltune.serve.models import Models
        from fulltune.serve.service import Service

        limits = limits or Limits()
        metrics = Metrics()
        self.batcher = Batcher(limits.queue, metrics)
        self.models = Models(name, out, load, self.batcher, metrics, database)
        service = Service(limits, self.models, self.batcher, metrics, database, execute)
        #: The ASGI application.
        self.app = create_app(service, token, self._lifespan)
        #: That the run of the model was rejected or stopped, and why; empty for any other model.
        self.warning = warning
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._loaded: Callable[[], None] | None = None
        settings = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=math.ceil(limits.seconds) + _SLACK,
        )
        self.uvicorn = uvicorn.Server(settings)

    def _facts(self, address: str) -> Ready:
        model = self.models.current
        return Ready(address, model.name, model.task.name, self.warning)

    def run(self, listening: socket.socket, ready: Callable[[Ready], None] | None = None) -> None:
        """Answer requests until SIGTERM or Ctrl-C.

        Raises:
            FulltuneError: The model cannot be loaded.
        """
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        if ready is not None:
            self._loaded = lambda: ready(self._facts(address))
        # uvicorn sends itself the signal again once it has stopped.
        with handled(_ignore):
            self.uvicorn.run(sockets=[listening])
        if self._error is not None:
            raise self._error

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        loader = threading.Thread(target=self._load_and_follow, name="fulltune-loader", daemon=True)
        self.batcher.start()
        loader.start()
        yield
        self._stop.set()
        self.batcher.close()

    def _load_and_follow(self) -> None:
        try:
            self.models.load()
            if self._loaded is not None:
                self._loaded()
            self.models.follow(self._stop)
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self._error = error
            self.uvicorn.should_exit = True


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let a signal that was handled already pass."""
