"""Cache the answers of baselines, keyed by everything that they depend on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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
VERSION = 4

#: Packages whose versions predictions depend on.
_PACKAGES = ("fulltune", "torch", "transformers", "tokenizers", "scikit-learn")


class Cached(NamedTuple):
    """Predictions of a baseline, computed as they are read, and a function that returns its use after the last one."""

    predictions: Iterator[Prediction]
    use: Callable[[], BaselineUse]


def cached(
    answer: Callable[[Sequence[Example]], Answers],
    examples: Sequence[Example],
    name: str,
    key: Mapping[str, Any],
    out: Path,
    advance: Callable[[], object],
) -> Cached:
    """Return the predictions of a baseline from the cache, or compute and cache them.

    Args:
        answer: The baseline.
        examples: The examples to answer.
        name: Name of the baseline.
        key: Everything that the predictions depend on, see :func:`cache_parts`.
        out: Folder of runs, which contains the cache.
        advance: Called after each computed prediction.
    """
    path = cache_path(out, cache_key({"baseline": name, **key}))
    uses: list[BaselineUse] = []

    def computed() -> Iterator[Prediction | BaselineUse]:
        started = time.perf_counter()
        answers = answer(examples)
        for prediction in answers.predictions:
            yield prediction
            advance()
        seconds = round(time.perf_counter() - started, 3)
        uses.append(BaselineUse(seconds=seconds, setting=answers.setting, sampled=answers.sampled))
        yield uses[0]

    def predictions() -> Iterator[Prediction]:
        rows = cached_rows(path, computed)
        for row in rows:
            if "system" in row:
                yield Prediction.model_validate(row)
            elif not uses:
                uses.append(BaselineUse.model_validate(row).model_copy(update={"is_cached": True}))

    return Cached(predictions(), lambda: uses[0])


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
