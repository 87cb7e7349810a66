"""Training with fast kernels: the same weights up to rounding, repeatable bit for bit, float32 by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from matrix import often
from torch import Tensor

from fulltune.config import Config
from fulltune.errors import ConfigError
from fulltune.runtime.kernels import active
from fulltune.runtime.kernels.products import PRODUCTS, Choices, shape_classes
from fulltune.tasks.base import Features
from fulltune.training.arguments import training_arguments
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.methods.full import Full

ALL = Choices(frozenset((product, sizes) for product in PRODUCTS for sizes in shape_classes()), "measured")
KINDS = ("gpt2", "bert", "t5")
STILL = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "t5": {"dropout_rate": 0.0},
}


@pytest.fixture(autouse=True)
def all_by_onednn() -> Iterator[None]:
    token = active._pinned.set(ALL)
    yield
    active._pinned.reset(token)


def job(speed: dict[str, Any], **options: Any) -> Config:
    train = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "evaluations": 1, "max_grad_norm": 1.0}
    fields = {"model": "m", "task": "causal-lm", "data": {"train": "x"}, "train": train, "speed": speed}
    return Config.model_validate(fields | options)


def trained(
    kind: str, folder: Path, speed: dict[str, Any], length: int = 12, **options: Any
) -> tuple[dict[str, Tensor], TrainingResult]:
    head = "classification" if kind == "bert" else "lm"
    bundle, config = fakes.bundle(kind, head, **options), job(speed)
    rows = []
    for index in range(6):
        ids = [(7 * index + 3 * place) % 60 + 5 for place in range(length + index)]
        rows.append(Features(ids, index % 2 if head == "classification" else list(ids), f"row:{index}"))
    result = fit(bundle, Full(config), rows, rows, config, output_dir=folder)
    assert not any("forward" in module.__dict__ for module in bundle.model.modules())
    return bundle.model.state_dict(), result


@pytest.mark.parametrize("kind", often(KINDS, lambda kind: kind != "gpt2"))
def test_kernels_change_nothing_but_the_rounding(kind: str, tmp_path: Path) -> None:
    fast, with_kernels = trained(kind, tmp_path, {"kernels": "auto"}, **STILL[kind])
    plain, without = trained(kind, tmp_path, {"kernels": "off"}, **STILL[kind])
    assert "oneDNN" in with_kernels.training.fast_paths[0]
    assert without.training.fast_paths == ("SDPA attention", "fused AdamW", "micro-batches in parts of similar length")
    losses = [[step.loss for step in result.steps if step.loss is not None] for result in (with_kernels, without)]
    assert len(losses[0]) >= 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(plain) > 20
    for name, value in plain.items():
        # AdamW's first steps follow the sign of a gradient: where it is 0 up to rounding, so is the sign.
        difference = (fast[name] - value).norm() / value.norm().clamp_min(1e-3)
        assert float(difference) <= 1e-3, name


@pytest.mark.parametrize("kind", often(KINDS, lambda kind: kind == "bert"))
def test_the_same_bits_each_time_with_dropout(kind: str, tmp_path: Path) -> None:
    first, _ = trained(kind, tmp_path, {"kernels": "auto"}, length=80)
    torch.rand(3)
    again, _ = trained(kind, tmp_path, {"kernels": "auto"}, length=80)
    assert len(first) > 20
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_bf16_mixed_keeps_weights_and_moments_in_float32(tmp_path: Path) -> None:
    seen = set()

    def note(module: Any, inputs: Any, output: Tensor) -> None:
        seen.add(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: note(module, inputs, output) if type(module) is torch.nn.Linear else None
    )
    try:
        weights, result = trained("t5", tmp_path, {"precision": "bf16-mixed"})
    finally:
        handle.remove()
    assert torch.bfloat16 in seen
    assert {value.dtype for value in weights.values()} == {torch.float32}
    evidence = " ".join(result.parameters.evidence)
    assert "products in bfloat16, as configured (speed.precision: bf16-mixed)" in evidence
    assert "optimizer moments float32" in evidence
    assert result.training.fast_paths[-2] == "products in bfloat16"


def test_float32_is_the_default_and_there_is_one_place_to_ask_for_less(tmp_path: Path) -> None:
    assert not training_arguments(job({}), tmp_path, 6).bf16
    assert training_arguments(job({"precision": "bf16-mixed"}), tmp_path, 6).bf16
    with pytest.raises(ConfigError, match=r"Set speed.precision and remove trainer.bf16"):
        training_arguments(job({}, trainer={"bf16": True}), tmp_path, 6)
