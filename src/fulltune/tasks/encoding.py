"""Encode examples as training sequences: in parallel for large data, with a cache for the next run on the same data.

Threads are used instead of processes: fast tokenizers are written in Rust and release Python's lock, so nothing is
forked while torch's threads run, nothing is pickled, and results stay in order. Each thread copies the tokenizer,
because calls change its state (truncation, padding; NLLB, mBART and M2M-100 switch between source and target language):
with a shared tokenizer some rows would get the code of the other language. The cache is that of the baselines
(:mod:`fulltune.store.cache`); the cache of ``datasets`` would hash the function with all objects it refers to,
including the model.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.store.cache import cache_key, cache_path, read_cache, write_cache
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Features, Task

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

#: Version of the encoding, part of the cache key; increment it if the same example would be encoded differently.
VERSION = 3

#: Maximum number of threads; each copies the tokenizer.
MOST_THREADS = 8

#: Characters per thread, so that its work outweighs copying the tokenizer.
PER_THREAD = 500_000

#: Number of characters from which reading the cache is faster than encoding.
VERY_MUCH = 1_000_000


def encode(task: Task, examples: Sequence[Example], bundle: Bundle, out: Path | None = None) -> list[list[Features]]:
    """Return the training sequences of each example, in order.

    Args:
        task: The task, which encodes single examples.
        examples: All examples.
        bundle: Model and tokenizer.
        out: Folder for the cache of large data, keyed by content, tokenizer and options of the task; None disables it.

    Raises:
        StoreError: The disk is full or read-only.
    """
    size = sum(len(example.input) + len(example.answer) for example in examples)
    if out is None or size < VERY_MUCH:
        return _encoded(task, examples, bundle, size)
    path = cache_path(out, cache_key(_parts(task, examples, bundle)))
    known = read_cache(path)
    if known is None:
        made = _encoded(task, examples, bundle, size)
        write_cache(path, ([vars(features) for features in group] for group in made))
        return made
    return [[Features(**features) for features in group] for group in known]


def _encoded(task: Task, examples: Sequence[Example], bundle: Bundle, size: int) -> list[list[Features]]:
    threads = min(os.cpu_count() or 1, MOST_THREADS, len(examples), size // PER_THREAD)
    if threads < 2 or not bundle.tokenizer.is_fast:
        return [task.encode(example, bundle) for example in examples]
    bundles = [replace(bundle, tokenizer=copy.deepcopy(bundle.tokenizer)) for _ in range(threads)]

    def encode_every(first: int) -> list[list[Features]]:
        return [task.encode(example, bundles[first]) for example in examples[first::threads]]

    encoded: list[list[Features]] = [[] for _ in examples]
    with ThreadPoolExecutor(threads) as pool:
        for first, part in enumerate(pool.map(encode_every, range(threads))):
            encoded[first::threads] = part
    return encoded


def _parts(task: Task, examples: Sequence[Example], bundle: Bundle) -> dict[str, Any]:
    """Return everything that the sequences depend on."""
    content = hashlib.sha256()
    for example in examples:
        row = [example.id, example.input, example.target, task.reads(example)]
        content.update(json.dumps(row, ensure_ascii=True).encode())
    return {
        "encoding": VERSION,
        "task": [task.name, task.version, f"{type(task).__module__}.{type(task).__qualname__}"],
        "prompts": prompts.VERSION,
        "options": task.config.data.model_dump(
            include={"instruction", "chat", "max_length", "max_target_length", "source_language", "target_language"}
        ),
        "labels": [task.labels, task.multi_label],
        "family": [bundle.family, bundle.head, bundle.window],
        "asked": prompts.fingerprint(bundle, task.config.data.chat, task.day),
        "examples": content.hexdigest(),
    }
