"""The byte n-gram model: a proper probability, against a plain loop, and better than counting bytes."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import fakes
import numpy as np
import pytest
from hypothesis import given as with_any
from hypothesis import settings
from hypothesis import strategies as some

from fulltune.config import Config
from fulltune.evaluation.baselines import ngrams
from fulltune.evaluation.baselines.base import Given
from fulltune.evaluation.baselines.ngrams import ORDER, ByteModel, ngram
from fulltune.tasks.base import Example
from fulltune.tasks.causal_lm import CausalLM

TALES = [f"Once upon a time there was a {name} who lived in a {place}. " for name in ("fox", "king", "cat")
         for place in ("wood", "house", "tower")]  # fmt: skip


def following(model: ByteModel, context: bytes) -> np.ndarray:
    return np.exp([-model.nll(context, bytes([byte]))[0] for byte in range(256)])


@settings(max_examples=10, deadline=None)
@with_any(
    some.lists(some.tuples(some.binary(max_size=9), some.binary(max_size=30)), max_size=4), some.binary(max_size=12)
)
def test_probabilities_are_positive_and_sum_to_one_after_any_context(
    texts: list[tuple[bytes, bytes]], context: bytes
) -> None:
    known = ByteModel(texts)
    for before in (context, b"", *(text for _, text in texts)):
        values = following(known, before)
        assert (values > 0).all()
        assert values.sum() == pytest.approx(1, abs=1e-9)


def plain(texts: list[bytes], context: bytes, byte: int) -> float:
    """Return the probability of a byte by the definition, with dictionaries."""
    counts: list[Counter[bytes]] = [Counter() for _ in range(ORDER + 1)]
    for text in texts:
        padded = bytes(ORDER - 1) + text
        counts[ORDER].update(padded[n : n + ORDER] for n in range(len(text)))
    for size in range(ORDER - 1, 0, -1):
        counts[size].update(gram[1:] for gram in counts[size + 1])
    probability = 1 / 256
    history = (bytes(ORDER - 1) + context)[-(ORDER - 1) :]
    for size in range(1, ORDER + 1):
        of_counts = Counter(counts[size].values())
        discounts = ngrams._discounts(np.array(list(counts[size].values()), dtype=float))
        assert sum(of_counts.values()) == len(counts[size])
        before = history[len(history) - size + 1 :] if size > 1 else b""
        seen = {gram[-1]: count for gram, count in counts[size].items() if gram[:-1] == before}
        if seen:
            total = sum(seen.values())
            left = sum(discounts[min(count, 3) - 1] for count in seen.values()) / total
            own = seen.get(byte, 0)
            probability = (own - discounts[min(own, 3) - 1] if own else 0) / total + left * probability
    return probability


def test_it_equals_a_plain_loop() -> None:
    texts = [tale.encode() for tale in TALES[:4]]
    model = ByteModel((b"", text) for text in texts)
    for context, byte in itertools.product((b"", b"Once", b"there was a ", b"zzz"), (b"O", b" ", b"f", b"~")):
        assert math.exp(-model.nll(context, byte)[0]) == pytest.approx(plain(texts, context, byte[0]))


def given(train: list[str], kind: str = "gpt2") -> Given:
    config = Config(model="m", task="causal-lm", data={"train": "t"})
    rows = [Example(f"t:{number}", "", text) for number, text in enumerate(train)]
    return Given(CausalLM(config), fakes.bundle(kind), config.baselines, rows)


def test_known_text_takes_few_bits_and_each_row_counts_its_bytes() -> None:
    asked = [Example("e:0", "", "There lived a fox in a tower."), Example("e:1", "", "Жил-был кот")]
    found = ngram(given(TALES), asked)
    first, second = found.predictions
    counts = Counter("".join(TALES).encode())
    entropy = -sum(n / counts.total() * math.log2(n / counts.total()) for n in counts.values())
    assert first.values["nll"] / first.values["bytes"] / math.log(2) < 0.75 * entropy
    assert second.values["nll"] / second.values["bytes"] / math.log(2) > 6
    assert first.values["tokens"] > 0
    assert not found.sampled


def test_the_same_bytes_count_as_for_the_model_and_prompts_are_only_read() -> None:
    config = Config(model="m", task="causal-lm", data={"train": "t"})
    task, base = CausalLM(config), fakes.bundle("gpt2")
    rows = [Example("a", "", "the law of the court"), Example("b", "the question", "the answer")]
    own = list(task.predictor(base, "zero_shot")(rows))
    found = list(ngram(Given(task, base, config.baselines, rows), rows).predictions)
    for key in ("bytes", "tokens"):
        assert [one.values[key] for one in found] == [one.values[key] for one in own]


def test_large_text_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "CHARACTERS", 200)
    assert ngram(given(TALES), []).sampled == "3 of 9 rows of train, drawn at random"


def test_no_text_in_train_leaves_a_uniform_model() -> None:
    assert following(ByteModel([]), b"a") == pytest.approx(np.full(256, 1 / 256))
