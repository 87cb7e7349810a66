"""Fast paths by device, config and installed packages; threads by what the machine can run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulltune.config import Config
from fulltune.runtime.kernels.products import NONE, Choices, shape_classes
from fulltune.runtime.kernels.threads import limit_threads, thread_count
from fulltune.training.device import fast_paths, is_installed, training_device

SOME = Choices(frozenset({("forward", shape_classes()[-1])}), "measured")


def job(**options: Any) -> Config:
    return Config.model_validate({"model": "m", "task": "causal-lm", "data": {"train": "t"}} | options)


@pytest.mark.parametrize(
    ("device", "options", "choices", "installed", "expected"),
    [
        ("cpu", {}, None, [], ["SDPA attention", "fused AdamW", "micro-batches in parts of similar length"]),
        ("cpu", {"speed": {"unpad": "off"}}, None, [], ["SDPA attention", "fused AdamW"]),
        ("cpu", {}, NONE, [], ["SDPA attention, with dropout in stretches", "cheap dropout masks", "denormals are zero",
         "fused AdamW", "micro-batches in parts of similar length"]),
        ("cuda", {}, SOME, [], ["SDPA attention", "fused AdamW"]),
        ("cuda", {"trainer": {"use_liger_kernel": True}}, SOME, ["liger_kernel"], ["SDPA attention", "fused AdamW",
         "Liger kernels"]),
        ("cuda", {"trainer": {"use_liger_kernel": True}}, SOME, [], ["SDPA attention", "fused AdamW"]),
        ("cuda", {}, SOME, ["liger_kernel"], ["SDPA attention", "fused AdamW"]),
        ("cuda", {"train": {"optimizer": "adafactor"}, "trainer": {"torch_compile": True}}, SOME, [],
         ["SDPA attention", "torch.compile"]),
        ("mps", {"speed": {"precision": "bf16-mixed"}}, None, [], ["SDPA attention", "fused AdamW",
         "products in bfloat16"]),
    ],
)  # fmt: skip
def test_the_fast_paths_of_a_job(
    device: str, options: dict[str, Any], choices: Choices | None, installed: list[str], expected: list[str]
) -> None:
    assert list(fast_paths(device, job(**options), choices, installed.__contains__)) == expected


def test_products_are_reported_with_the_source_of_the_choice() -> None:
    first = fast_paths("cpu", job(), SOME)[0]
    assert first.endswith("float32 products by oneDNN (measured)")
    assert is_installed("torch")
    assert not is_installed("no_such_package")


@pytest.mark.parametrize(
    ("usable", "physical", "given", "environment", "wanted"),
    [
        (2, 32, 64, {}, 2),
        (64, 32, 64, {}, 32),
        (8, None, 8, {}, 8),
        (8, 8, 1, {}, 1),
        (2, 1, 2, {"OMP_NUM_THREADS": "2"}, 2),
        (2, 1, 2, {"OMP_NUM_THREADS": ""}, 1),
    ],
)
def test_threads(usable: int, physical: int | None, given: int, environment: dict[str, str], wanted: int) -> None:
    assert thread_count(usable, physical, given, environment) == wanted


def test_the_device_is_the_trainers() -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    assert training_device(job().trainer) == ("cpu" if found is None else found.type)
    assert training_device(job(trainer={"use_cpu": True}).trainer) == "cpu"


def test_threads_are_only_ever_lowered() -> None:
    before = torch.get_num_threads()
    try:
        assert limit_threads() == torch.get_num_threads() <= before
    finally:
        torch.set_num_threads(before)
