"""Caches go in and out of models under the name of the installed transformers, without a warning."""

from __future__ import annotations

from typing import Any

import fakes
import torch

from fulltune.models.cache_names import CACHE, cache_argument, cache_of


def test_a_cache_continues_a_text() -> None:
    model, _ = fakes.gpt2()
    model.eval()
    ids = torch.arange(12)[None] + 40
    with torch.no_grad():
        first = model(input_ids=ids[:, :7], use_cache=True)
        rest = model(input_ids=ids[:, 7:], **{cache_argument(model): cache_of(first)})
        whole = model(input_ids=ids, use_cache=False)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole.logits, rtol=0, atol=1e-5)
    assert cache_of(whole) is None


class _Earlier:
    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


class _Wrapper:
    def forward(self, *args: Any, **options: Any) -> None: ...


def test_a_model_with_the_earlier_name_keeps_it() -> None:
    assert cache_argument(_Earlier()) == "past_key_values"
    assert cache_argument(_Wrapper()) == CACHE
