"""Encoded rows are the same in one thread, in several, and from the cache, whose key covers every input."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
from transformers import NllbTokenizer

from fulltune.config import load_config
from fulltune.tasks import encoding
from fulltune.tasks.base import Example, Task
from fulltune.tasks.causal_lm import CausalLM
from fulltune.tasks.classification import Classification
from fulltune.tasks.seq2seq import Seq2Seq


def _task(*overrides: str) -> CausalLM:
    return CausalLM(load_config({"model": "m", "task": "causal-lm", "data": {"train": "t"}}, overrides))


def _examples(count: int = 60) -> list[Example]:
    return [Example(f"row:{n}", "", "a tale of " + "the fox and the king " * (n % 23)) for n in range(count)]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use threads and the cache even for little text."""
    monkeypatch.setattr(encoding, "PER_THREAD", 1)
    monkeypatch.setattr(encoding, "VERY_MUCH", 0)
    monkeypatch.setattr(encoding.os, "cpu_count", lambda: 4)


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_threads_and_cache_change_nothing(kind: str, tmp_path: Path) -> None:
    bundle = fakes.bundle(kind)
    examples = _examples()
    task = _task()
    alone = [task.encode(example, bundle) for example in examples]
    assert encoding.encode(task, examples, bundle) == alone
    assert encoding.encode(task, examples, bundle, tmp_path) == alone
    assert len(list(tmp_path.rglob("*.jsonl"))) == 1

    class Unasked(CausalLM):
        """A task that must not encode."""

    Unasked.__module__, Unasked.__qualname__ = CausalLM.__module__, CausalLM.__qualname__
    Unasked.encode = lambda *_: pytest.fail("read from the cache")  # type: ignore[method-assign,assignment]
    assert encoding.encode(Unasked(task.config), examples, bundle, tmp_path) == alone


@pytest.mark.usefixtures("forced")
def test_encoded_classes_are_restored_unchanged(tmp_path: Path) -> None:
    task = Classification(load_config({"model": "m", "task": "classification", "data": {"train": "t"}}))
    examples = [Example(f"row:{n}", "the court shall", ("yes",) if n % 2 else ()) for n in range(8)]
    task = task.fit(examples, examples)
    bundle = fakes.bundle("bert")
    made = encoding.encode(task, examples, bundle, tmp_path)
    assert encoding.encode(task, examples, bundle, tmp_path) == made
    assert made[1][0].labels == [1.0]


@pytest.mark.usefixtures("forced")
def test_whatever_changes_is_encoded_again(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2")
    examples = _examples()
    task = _task()

    def entries(task: Task = task, examples: list[Example] = examples, **changed: object) -> int:
        encoding.encode(task, examples, replace(bundle, **changed), tmp_path)  # type: ignore[arg-type]
        return len(list(tmp_path.rglob("*.jsonl")))

    assert entries() == entries() == 1
    assert entries(task=_task("data.max_length=16")) == 2
    assert entries(examples=[*examples[1:], replace(examples[0], target="another")]) == 3
    assert entries(tokenizer=fakes.llama_tokenizer()) == 4
    assert entries(window=64) == 5

    class Reading(CausalLM):
        """A task that reads something besides the example."""

        def reads(self, example: Example) -> str:
            return "schema"

    assert entries(task=Reading(task.config)) == 6


@pytest.mark.usefixtures("forced")
def test_a_damaged_entry_is_ignored(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2")
    examples = _examples()
    task = _task()
    made = encoding.encode(task, examples, bundle, tmp_path)
    (entry,) = tmp_path.rglob("*.jsonl")
    lines = entry.read_text().splitlines()
    lines[0] = json.dumps([])
    entry.write_text("\n".join(lines) + "\n")
    assert encoding.encode(task, examples, bundle, tmp_path) == made


@pytest.mark.usefixtures("forced")
def test_a_tokenizer_that_switches_languages_is_not_shared_between_threads() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    model, tokenizer = fakes.make("bart", tokenizer=_languages())
    bundle = replace(fakes.bundle("bart"), model=model, tokenizer=tokenizer)
    task = Seq2Seq(load_config({"model": "m", "task": "seq2seq", "data": {"train": "t"}}))
    examples = [Example(f"row:{n}", "the fox " * 8, "a king " * 8) for n in range(400)]
    try:
        features = [group[0] for group in encoding.encode(task, examples, bundle)]
    finally:
        sys.setswitchinterval(interval)
    first = {(item.input_ids[0], item.labels[0]) for item in features}  # type: ignore[index]
    assert first == {tuple(tokenizer.convert_tokens_to_ids(["eng_Latn", "fra_Latn"]))}


def _languages() -> NllbTokenizer:
    letters = {
        name: index for index, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz▁"])
    }
    languages = {"src_lang": "eng_Latn", "tgt_lang": "fra_Latn", "extra_special_tokens": ["eng_Latn", "fra_Latn"]}
    return NllbTokenizer(vocab=letters, merges=[], model_max_length=fakes.WINDOW, **languages)


def test_little_text_is_not_cached(tmp_path: Path) -> None:
    encoding.encode(_task(), _examples(5), fakes.bundle("gpt2"), tmp_path)
    assert not list(tmp_path.iterdir())
