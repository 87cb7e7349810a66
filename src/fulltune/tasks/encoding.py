"""Examples as training sequences: in parallel where there is much text, and kept for the next run on the same data.

Threads, not processes: a fast tokenizer is Rust that releases Python's lock, so nothing is forked while torch's threads
run, nothing is pickled, and what comes back is in order. Each thread has a copy of the tokenizer: a call changes its
state (truncation, padding; NLLB, mBART and M2M-100 switch between source and target language), so that a tokenizer that
several threads use gives some rows the other language's code. The cache is that of the baselines
(:mod:`fulltune.store.cache`); that of ``datasets`` hashes the function with everything it closes over, which for a task
is a whole model.
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
from typing import Any

from fulltune.models.bundle import Bundle
from fulltune.store.cache import cache_key, cache_path, read_cache, write_cache
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Features, Task

#: Raised when the same example would be encoded in another way.
VERSION = 2

#: Threads at most; each copies the tokenizer.
MOST_THREADS = 8

#: Characters that a thread is worth starting for, since it begins with a copy of the tokenizer.
PER_THREAD = 500_000

#: Characters from which on reading what was encoded before is faster than encoding.
VERY_MUCH = 1_000_000


def encode(task: Task, examples: Sequence[Example], bundle: Bundle, out: Path | None = None) -> list[list[Features]]:
    """The training sequences of each example, in order.

    Args:
        task: Encodes one example.
        examples: All of them.
        bundle: Whose tokenizer is used.
        out: Where much text is cached, by its content, the tokenizer, and the task's options; nowhere by default.

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
    """Everything that the sequences depend on."""
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
