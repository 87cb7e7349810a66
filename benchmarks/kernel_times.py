"""Speed of each kernel against plain torch: pairs measured alternately, medians.

    python benchmarks/kernel_times.py [PAIRS] [SECTION …]

Sections are products, dropout, attention, pieces and steps. Prints one JSON object with the seconds of both and their
median ratio: for layers of GPT-2, MiniLM and T5-small, for dropout, for attention with dropout (and the bytes that it
keeps), for GELU and LayerNorm next to a product, and for complete training steps of the three architectures.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fulltune.models.fast_kernels import fast_kernels
from fulltune.runtime.kernels.active import current, pinned_kernels
from fulltune.runtime.kernels.allocator import keep_freed_pages
from fulltune.runtime.kernels.attention import attention
from fulltune.runtime.kernels.dropout import dropout
from fulltune.runtime.kernels.linear import linear
from fulltune.runtime.kernels.products import PRODUCTS, Choices, shape_classes

ONEDNN = Choices(frozenset((product, sizes) for product in PRODUCTS for sizes in shape_classes()), "rule")

#: Rows, in and out of layers: MiniLM at 16 × 75 tokens, T5-small and GPT-2 at 2048 tokens, and GPT-2's head.
LAYERS = {
    "minilm attention": (1200, 384, 384),
    "minilm up": (1200, 384, 1536),
    "minilm down": (1200, 1536, 384),
    "t5-small up": (2048, 512, 2048),
    "gpt2 qkv": (2048, 768, 2304),
    "gpt2 up": (2048, 768, 3072),
    "gpt2 down": (2048, 3072, 768),
    "gpt2 head": (512, 768, 50257),
    "tiny": (32, 64, 64),
}

Work = Callable[[], Any]


def pairs(plain: Work, fast: Work, count: int) -> dict[str, float]:
    """Return the median seconds of both, measured alternately after one warm-up each, and the median of the ratios."""
    plain(), fast()
    times = [(_seconds(plain), _seconds(fast)) for _ in range(count)]
    return {
        "plain_seconds": round(statistics.median(a for a, _ in times), 6),
        "fast_seconds": round(statistics.median(b for _, b in times), 6),
        "speed_up": round(statistics.median(a / b for a, b in times), 3),
    }


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    return linear(x, weight, None, ONEDNN)


def products(count: int) -> dict[str, Any]:
    """Measure forward and backward of single layers; ``gflops`` is that of the fast one."""
    found = {}
    for name, (rows, inputs, outputs) in LAYERS.items():
        x, weight = torch.randn(rows, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=True)
        above = torch.randn(rows, outputs)

        def layer(by: Callable[[Tensor, Tensor], Tensor], x: Any = x, weight: Any = weight, above: Any = above) -> None:
            torch.autograd.grad(by(x, weight), (x, weight), above)

        one = pairs(partial(layer, F.linear), partial(layer, by_onednn), count)
        found[name] = one | {"gflops": round(6 * rows * inputs * outputs / one["fast_seconds"] / 1e9, 1)}
    return found


def masks(count: int) -> dict[str, Any]:
    """Measure dropout of 0.1, forward and backward."""
    found = {}
    for size in (2**13, 2**17, 1200 * 384, 4 * 1024 * 768):
        x = torch.randn(size, requires_grad=True)

        def both(by: Callable[..., Tensor], x: Tensor = x) -> None:
            by(x, 0.1, True).sum().backward()

        found[str(size)] = pairs(partial(both, F.dropout), partial(both, dropout), count)
    return found


def attentions(count: int) -> dict[str, Any]:
    """Measure attention with a dropout of 0.1, forward and backward, and the bytes that each keeps in between."""
    found = {}
    shapes = {"gpt2 4×1024": (4, 12, 1024, 64, True), "gpt2 4×512": (4, 12, 512, 64, True)}
    shapes |= {"minilm 16×75": (16, 12, 75, 32, False), "minilm 16×256": (16, 12, 256, 32, False)}
    for name, (rows, heads, length, size, is_causal) in shapes.items():
        inputs = [torch.randn(rows, length, heads, size).transpose(1, 2).requires_grad_() for _ in range(3)]

        def plain(inputs: Any = inputs, is_causal: bool = is_causal) -> Tensor:
            return F.scaled_dot_product_attention(*inputs, dropout_p=0.1, is_causal=is_causal)

        def fast(inputs: Any = inputs, is_causal: bool = is_causal) -> Tensor:
            return attention(*inputs, p=0.1, is_causal=is_causal)

        kept = {"plain_kept_bytes": _kept(plain), "fast_kept_bytes": _kept(fast)}
        found[name] = pairs(partial(_backward, plain), partial(_backward, fast), count) | kept
    return found


def _backward(work: Callable[[], Tensor]) -> None:
    work().sum().backward()


def _kept(work: Callable[[], Tensor]) -> int:
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work()
    return sum(sizes.values())


def pieces(count: int) -> dict[str, Any]:
    """Measure the most that a fused activation or norm could save: the seconds of torch's own next to a product."""
    x, weight = torch.randn(2048, 768, requires_grad=True), torch.randn(3072, 768)
    wide = torch.randn(2048, 3072, requires_grad=True)
    scale = torch.ones(768)
    shift = torch.zeros(768)

    def both(work: Callable[[], Tensor]) -> Work:
        return lambda: work().sum().backward()

    product = both(lambda: linear(x, weight, None, ONEDNN))
    return {
        "gelu (tanh) next to its product": pairs(both(lambda: F.gelu(wide, approximate="tanh")), product, count),
        "layer norm next to a product": pairs(both(lambda: F.layer_norm(x, (768,), scale, shift)), product, count),
    }


def models() -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """Return three architectures with random weights and their default dropout, and a batch each."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    minilm = BertForSequenceClassification(BertConfig(num_labels=19, **size))
    small = T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0)
    ids = torch.randint(1000, 20000, (2, 512))
    short, answers = torch.randint(1000, 20000, (16, 75)), torch.randint(1000, 20000, (16, 40))
    return {
        "gpt2 124M, 2×512": (GPT2LMHeadModel(GPT2Config()), {"input_ids": ids, "labels": ids}),
        "minilm, 16×75": (minilm, {"input_ids": short, "labels": torch.randint(0, 19, (16,))}),
        "t5-small, 16×75 to 40": (T5ForConditionalGeneration(small), {"input_ids": short, "labels": answers}),
    }


def steps(count: int) -> dict[str, Any]:
    """Measure a training step without the optimizer; a third of the pairs, since steps are long."""
    found = {}
    for name, (model, batch) in models().items():
        model.train()

        def step(model: Any = model, batch: Any = batch) -> None:
            model(**batch).loss.backward()
            model.zero_grad()

        def fast(model: Any = model, step: Work = step) -> None:
            with pinned_kernels("auto"), fast_kernels(model):
                step()

        found[name] = pairs(step, fast, max(3, count // 3))
    return found


SECTIONS = {"products": products, "dropout": masks, "attention": attentions, "pieces": pieces, "steps": steps}


def main(count: int, sections: list[str]) -> None:
    torch.manual_seed(17)
    keep_freed_pages()
    choices = current()
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "choices": None if choices is None else {"source": choices.source, "share": round(choices.fraction, 3)},
    }
    for name in sections or SECTIONS:
        found[name] = SECTIONS[name](count)
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15, sys.argv[2:])
