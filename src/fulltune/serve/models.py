"""Keep the model that answers new requests, and follow a name of the registry to its current version."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.errors import FulltuneError, Problem
from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.serve.batching import Batcher, Job
from fulltune.serve.refusals import Refusal
from fulltune.store.registry.registry import reference

if TYPE_CHECKING:
    from fulltune.serve.metrics import Metrics

_log = logging.getLogger(__name__)

#: Seconds between two looks at the registry.
INTERVAL = 2.0

#: Seconds after which a version that could not be loaded is tried again.
RETRY = 60.0


class Models:
    """The current model under a name.

    A name of the registry without a number (``reviews``, ``reviews@production``) is followed: after a promotion or a
    roll-back, the new version is loaded and answers once, and only then takes over. Requests that began before finish
    on the version that they began with.

    Args:
        name: The name, as given by the user.
        out: Folder of the runs and the registry.
        load: Loads a model by its name or version.
        batcher: Runs the first answer of a new model, as all others.
        metrics: Counts the changes.
        database: text2sql: the database of questions that name none.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        load: Callable[[str], LoadedModel],
        batcher: Batcher,
        metrics: Metrics,
        database: str = "",
    ) -> None:
        self.name = name
        self.database = database
        #: The reason that the version which the name refers to now does not answer; empty if it does.
        self.trouble = ""
        #: Time at which the current model took over, in seconds since 1970.
        self.since = 0
        self._out = out
        self._load = load
        self._batcher = batcher
        self._metrics = metrics
        self._current: LoadedModel | None = None
        self._failed = ("", 0.0)

    @property
    def current(self) -> LoadedModel:
        """The model that answers new requests.

        Raises:
            Refusal: It is not loaded yet.
        """
        if self._current is None:
            problem = Problem("the model is being loaded", "a loaded model", "try again in a second")
            raise Refusal(503, problem, headers={"Retry-After": "1"})
        return self._current

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which clients may ask for the model."""
        return tuple(dict.fromkeys((self.name, self.current.name)))

    def load(self) -> None:
        """Load the first model.

        Raises:
            FulltuneError: It cannot be loaded.
        """
        version = reference(self.name, self._out)
        self._take_over(self._load(version.ref if version else self.name))

    def follow(self, stop: threading.Event) -> None:
        """Follow the registry until ``stop`` is set; returns at once for a name that cannot move."""
        if self.can_move():
            while not stop.wait(INTERVAL):
                self.check()

    def check(self) -> None:
        """Load the version that the name refers to, if it is another one than the current."""
        wanted = self.name
        try:
            version = reference(self.name, self._out)
            wanted = version.ref if version else self.name
            if version is None or wanted == self.current.name:
                self.trouble = ""
            elif wanted != self._failed[0] or time.monotonic() > self._failed[1] + RETRY:
                self._take_over(self._load(wanted))
                self._metrics.changes.labels("done").inc()
        except FulltuneError as error:
            self._keep(wanted, str(error))
        except Exception as error:  # noqa: BLE001 - the current model continues to answer
            _log.exception("%s could not be loaded", wanted)
            self._keep(wanted, f"{type(error).__name__}: {error}")

    def can_move(self) -> bool:
        """Return True if the name may refer to another version later."""
        return reference(self.name, self._out) is not None and not self.name.partition("@")[2].isdecimal()

    def _take_over(self, model: LoadedModel) -> None:
        """Let a model answer new requests, after it has answered once."""
        _count_tokens(model, self._metrics)
        try:
            first = model.task.request({model.task.inputs[0]: "first"}, self.database)
        except FulltuneError:
            if self.database:
                raise
            # Otherwise there are several databases, and each request has to name one.
        else:
            job = Job(model, [first])
            self._batcher.submit_next(job)
            job.future.result()
        self._current, self.since = model, int(time.time())
        self.trouble = ""
        self._metrics.serving(model.name)
        _log.info("%s answers new requests", model.name)

    def _keep(self, wanted: str, reason: str) -> None:
        """Keep the current model because another one cannot be loaded; the same trouble is logged once."""
        self._metrics.changes.labels("failed").inc()
        self._failed = (wanted, time.monotonic())
        trouble = f"{wanted} cannot be loaded: {reason}"
        if trouble != self.trouble:
            _log.error("%s; %s continues to answer", trouble, self.current.name)
        self.trouble = trouble


def _count_tokens(model: LoadedModel, metrics: Metrics) -> None:
    """Count the tokens that a model reads, without padding."""
    read = metrics.tokens.labels("input")

    def count(module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        read.inc(int(options["attention_mask"].sum()))

    if model.task.head == "classification":
        model.model.register_forward_pre_hook(count, with_kwargs=True)
