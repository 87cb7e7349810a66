"""Cache the answers of baselines, keyed by everything that they depend on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fulltune.config import Config
from fulltune.data.load import Table
from fulltune.evaluation.baselines.base import Answers
from fulltune.models import inference, reconcile
from fulltune.models.bundle import Bundle
from fulltune.records.run import BaselineUse, Prediction
from fulltune.store.cache import cache_key, cache_path, cached_rows
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Task

#: Part of the key of cached answers: increase it when a baseline gives other answers.
VERSION = 5

#: Packages whose versions predictions depend on.
_PACKAGES = ("fulltune", "torch", "transformers", "tokenizers", "scikit-learn")


class CachedAnswers:
    """The predictions of a baseline: from the cache, or computed as they are read and then cached.

    Args:
        answer: The baseline.
        name: Name of the baseline.
        key: Everything that the predictions depend on, see :func:`cache_parts`.
        out: Folder of runs, which contains the cache.
        advance: Called after each computed prediction.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Example]], Answers],
        name: str,
        key: Mapping[str, Any],
        out: Path,
        advance: Callable[[], object],
    ) -> None:
        self._answer = answer
        self._path = cache_path(out, cache_key({"baseline": name, **key}))
        self._advance = advance
        self._use: BaselineUse | None = None

    @property
    def use(self) -> BaselineUse:
        """Return how the baseline was computed.

        Raises:
            RuntimeError: Not all predictions were read; the use is stored after the last one.
        """
        if self._use is None:
            raise RuntimeError("the predictions of the baseline were not read to their end")
        return self._use

    def predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """Yield the predictions for the examples that the key describes, in their order."""
        for row in cached_rows(self._path, lambda: self._computed(examples)):
            if "system" in row:
                yield Prediction.model_validate(row)
            elif self._use is None:
                self._use = BaselineUse.model_validate(row).model_copy(update={"is_cached": True})

    def _computed(self, examples: Sequence[Example]) -> Iterator[Prediction | BaselineUse]:
        started = time.perf_counter()
        answers = self._answer(examples)
        for prediction in answers.predictions:
            yield prediction
            self._advance()
        seconds = round(time.perf_counter() - started, 3)
        self._use = BaselineUse(seconds=seconds, setting=answers.setting, sampled=answers.sampled)
        yield self._use


def cache_parts(task: Task, config: Config, base: Bundle, train: Table, scored: Table) -> dict[str, Any]:
    """Return everything that a baseline's predictions depend on: base, data, prompts, and options that change them."""
    options = {"instruction", "chat", "max_length", "max_target_length", "schemas", "databases"}
    options |= {"seed", "schema_in_prompt", "source_language", "target_language"}
    return {
        "packages": {name: version(name) for name in _PACKAGES},
        "task": [task.name, task.version],
        "prompts": prompts.VERSION,
        "inference": inference.VERSION,
        "asked": prompts.fingerprint(base, config.data.chat, task.day),
        "files": task.files(),
        "base": base.info.sha256,
        "reconciled": [reconcile.VERSION, *base.info.reconciled],
        "window": base.window,
        "train": train.sha256,
        "eval": scored.sha256,
        "ids": [train.source, scored.source],
        "data": config.data.model_dump(include=options),
        "baselines": [VERSION, config.baselines.model_dump(exclude={"skip", "time"})],
        "evaluation": config.evaluation.model_dump(
            include={"max_new_tokens", "continuations", "sql_seconds", "sql_match"}
        ),
    }
