"""Out of memory: the step is repeated in smaller parts, with the same result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from accelerate.utils.memory import should_reduce_batch_size
from hypothesis import given
from hypothesis import strategies as st
from matrix import often
from torch import Tensor
from transformers import TrainerCallback

from fulltune import MemoryExhausted, Trainer
from fulltune.training.batches.out_of_memory import MicroBatches, is_out_of_memory, padded_tokens, split
from fulltune.training.regularization.dropout import set_dropout

TEXTS = [f"the tale of fox number {number} {'and on ' * (number % 4)}" for number in range(16)]

Fail = Callable[[], Any]


def on_the_cpu() -> None:
    torch.empty(2**57)


def on_an_accelerator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")


def in_python() -> None:
    raise MemoryError


FAILURES = [on_the_cpu, on_an_accelerator, in_python]


@pytest.mark.parametrize("fail", FAILURES)
def test_out_of_memory_errors_are_recognized(fail: Fail) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        fail()
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyError("x")]
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        self.values += [logs["loss"]] if "loss" in logs else []


def too_many_rows(model: Any, most: int, fail: Fail, backward: bool = False) -> list[int]:
    """Make training batches of more than ``most`` rows run out of memory, in the forward or the backward pass."""
    seen: list[int] = []

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training:
            seen.append(len(kwargs["input_ids"]))
            if seen[-1] > most and not backward:
                fail()

    def after(module: Any, args: Any, output: Tensor) -> None:
        if backward and module.training and output.shape[0] > most:
            # The gradient of the first layer is computed last: those of all others exist by then.
            output.register_hook(lambda gradient: fail())

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(after)
    return seen


def trained(
    folder: Path,
    kind: str = "gpt2",
    most: int | None = None,
    fail: Fail = on_the_cpu,
    backward: bool = False,
    **options: Any,
) -> tuple[Trainer, list[float], list[int]]:
    head = "classification" if kind == "bert" else "lm"
    model, tokenizer = fakes.make(kind, head)
    set_dropout(model, options.pop("dropout", 0.0))
    ids = [tokenizer(text).input_ids for text in options.pop("texts", TEXTS)]
    labels = [number % 2 for number in range(len(ids))] if kind == "bert" else ids
    rows = [{"input_ids": one, "labels": label} for one, label in zip(ids, labels, strict=True)]
    losses = Losses()
    settings = {"max_steps": 4, "learning_rate": 1e-2, "train_sampling_strategy": "sequential", "seed": 5}
    trainer = Trainer(
        model=model, args=fakes.arguments(folder, **(settings | options)), train_dataset=rows, callbacks=[losses]
    )
    seen = [] if most is None else too_many_rows(model, most, fail, backward)
    trainer.train()
    return trainer, losses.values, seen


@pytest.mark.parametrize(
    ("kind", "fail"),
    often(
        product(["gpt2", "bert", "t5"], FAILURES),
        lambda case: case in [("gpt2", on_the_cpu), ("t5", on_an_accelerator), ("bert", in_python)],
    ),
)
def test_the_result_is_that_of_smaller_micro_batches_from_the_start(kind: str, fail: Fail, tmp_path: Path) -> None:
    small, expected, _ = trained(tmp_path, kind, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    recovered, losses, seen = trained(tmp_path, kind, most=2, fail=fail, per_device_train_batch_size=8)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert max(seen) == 8
    assert seen.count(8) == 1, "the size is remembered"
    assert recovered.state.global_step == 4
    for name, value in recovered.model.state_dict().items():
        torch.testing.assert_close(
            value, small.model.state_dict()[name], rtol=1e-4, atol=1e-4
        )  # AdamW divides gradients near 0 by themselves


def test_gradients_of_the_failed_pass_and_of_earlier_micro_batches_count_once(tmp_path: Path) -> None:
    _, expected, _ = trained(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    recovered, losses, _ = trained(
        tmp_path, most=2, backward=True, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert losses == pytest.approx(expected, rel=1e-6)
    assert len(recovered._fulltune.step.micro_batches.events) == 1


def test_the_second_micro_batch_of_a_step_may_be_the_one_that_fails(tmp_path: Path) -> None:
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    _, expected, _ = trained(tmp_path, **options)
    calls = iter(range(100))

    def second() -> None:
        if next(calls) == 1:
            on_the_cpu()

    _, losses, seen = trained(tmp_path, most=3, fail=second, **options)
    assert seen[:2] == [4, 4]
    assert set(seen[2:6]) <= {2, 3}, "both micro-batches are computed again"
    assert losses == pytest.approx(expected, rel=1e-6)


def test_dropout_draws_the_same_as_with_smaller_micro_batches(tmp_path: Path) -> None:
    # Rows of one length: parts are then as wide as micro-batches would be.
    shared: dict[str, Any] = {"texts": ["the fox and the king"] * 16, "dropout": 0.3}
    _, expected, _ = trained(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, **shared)
    _, losses, _ = trained(tmp_path, most=4, per_device_train_batch_size=8, **shared)
    assert losses == pytest.approx(expected, rel=1e-6)


def test_the_event_names_the_setting_to_change(tmp_path: Path) -> None:
    recovered, _, _ = trained(tmp_path, most=2, per_device_train_batch_size=8)
    first, second = recovered._fulltune.step.micro_batches.events
    assert (first.guard, first.step, first.verdict) == ("memory", 1, "continue")
    assert "train.batch_size: 4" in first.message
    assert "train.batch_size: 2 and multiply train.accumulation by 4" in second.message


def test_one_row_that_does_not_fit_stops_with_intact_weights(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    too_many_rows(model, 0, on_the_cpu)
    rows = [{"input_ids": tokenizer(text).input_ids} for text in TEXTS]
    args = fakes.arguments(tmp_path, per_device_train_batch_size=4, max_steps=2)
    with pytest.raises(
        MemoryExhausted, match=r"one row.*gradient_checkpointing.*the weights are those of step 0"
    ) as raised:
        Trainer(model=model, args=args, train_dataset=rows).train()
    assert raised.value.exit_code == 3
    assert should_reduce_batch_size(raised.value)  # auto_find_batch_size and scripts see what torch would raise
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_additive_is_not_split() -> None:
    model = torch.nn.Linear(2, 1)
    batch = {"input_ids": torch.zeros(4, 3)}
    micro_batches = MicroBatches()
    micro_batches.begin([batch])
    with pytest.raises(MemoryExhausted, match="4 rows, which cannot be split"):
        micro_batches.run(lambda one: torch.empty(2**57), model, batch, step=1, adds_up=False)


def test_other_errors_are_not_caught() -> None:
    micro_batches = MicroBatches()
    with pytest.raises(RuntimeError, match="size of tensor"):
        micro_batches.run(
            lambda one: torch.ones(2) + torch.ones(3),
            torch.nn.Linear(1, 1),
            {"x": torch.zeros(4, 2)},
            step=1,
            adds_up=True,
        )


@given(rows=st.integers(1, 20), part=st.integers(1, 20))
def test_parts_add_up_to_the_batch(rows: int, part: int) -> None:
    batch = {
        "input_ids": torch.arange(rows * 3).view(rows, 3),
        "labels": torch.arange(rows),
        "scale": torch.tensor(2.0),
    }
    parts = split(batch, part)
    assert [len(one["labels"]) for one in parts] == [len(range(rows)[i : i + part]) for i in range(0, rows, part)]
    for name in ("input_ids", "labels"):
        assert torch.equal(torch.cat([one[name] for one in parts]), batch[name])
    assert all(one["scale"] == 2 for one in parts)
    assert sum(padded_tokens(one) for one in parts) == padded_tokens(batch)


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from transformers import GPT2Config, GPT2LMHeadModel
sys.path.insert(0, sys.argv[1])
import fakes
from fulltune import Trainer

torch.set_num_threads(1)
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=256, n_embd=64, n_layer=2, n_head=2))
rows = [{"input_ids": [7] * 256}] * 32
args = fakes.arguments(Path(sys.argv[2]), per_device_train_batch_size=32, max_steps=1)
trainer = Trainer(model=model, args=args, train_dataset=rows)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = used + 100 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
trainer.train()
print(trainer.state.global_step, len(trainer._fulltune.step.micro_batches.events))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are those of Linux")
def test_a_process_with_a_real_memory_limit_continues(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(Path(fakes.__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    steps, events = map(int, done.stdout.split()[-2:])
    assert steps == 1
    assert events >= 1
