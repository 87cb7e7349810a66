"""Span corruption loses nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fulltune.training.regularization.denoising import corrupt


@given(st.integers(8, 600), st.integers(0, 10_000), st.sampled_from([(0.15, 3.0), (0.5, 8.0)]))
def test_source_and_target_hold_every_token_once(length: int, seed: int, settings: tuple[float, float]) -> None:
    ids = np.arange(length)
    sentinels, end = range(1000, 1100), 2000
    source, target = corrupt(ids, sentinels, end, np.random.default_rng(seed), *settings)
    assert source[-1] == target[-1] == end
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= 1000:
            spans[int(token)] = []
        else:
            spans[max(spans)].append(int(token))
    assert all(spans.values()), "no sentinel stands for nothing"
    back = [token for one in source[:-1] for token in (spans[int(one)] if one >= 1000 else [int(one)])]
    assert back == ids.tolist()
    assert sum(map(len, spans.values())) == max(1, round(length * settings[0]))
