from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from transformers.training_args import OptimizerNames

from fulltune import Config, ConfigError
from fulltune.errors import MissingDependencyError
from fulltune.tasks.base import Features
from fulltune.training.arguments import training_arguments
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.methods.full import Full
from fulltune.training.optimizers import has_8bit_state, optimizer_name, state_bytes

#: So wide that most weights are in tensors of more than the 4096 numbers that are kept in 8 bits.
WIDE = {"n_inner": 2048}


def _config(optimizer: str, **trainer: Any) -> Config:
    train = {"optimizer": optimizer, "max_steps": 12, "batch_size": 4, "learning_rate": 3e-3, "evaluations": 0}
    return Config(model="m", task="causal-lm", data={"train": "x"}, train=train | {"warmup": 0}, trainer=trainer)


def _fit(config: Config, folder: Path) -> TrainingResult:
    bundle = fakes.bundle("gpt2", **WIDE)
    ids = [bundle.tokenizer(text).input_ids for text in ("the fox", "a king", "law", "the court")]
    features = [Features(row, list(row), str(number)) for number, row in enumerate(ids)]
    return fit(bundle, Full(config), features, None, config, output_dir=folder)


def test_8_bit_adamw_learns_on_the_cpu_with_a_quarter_of_the_state(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    whole, small = _fit(_config("adamw"), tmp_path), _fit(_config("adamw-8bit"), tmp_path)
    assert small.training.optimizer == "adamw_bnb_8bit"
    assert small.parameters.moved == 1.0
    assert small.training.final_loss == pytest.approx(whole.training.final_loss, rel=0.05)
    assert small.training.final_loss < 0.9 * (small.steps[0].loss or 0.0)
    assert 2 * 4 * whole.parameters.total <= whole.training.optimizer_bytes < 2 * 4 * whole.parameters.total + 1000
    assert small.training.optimizer_bytes < 0.4 * whole.training.optimizer_bytes


def test_the_proof_distinguishes_8_bit_moments(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    parameters = _fit(_config("adamw-8bit"), tmp_path).parameters
    bundle = fakes.bundle("gpt2", **WIDE)
    large = sum(
        value.numel() >= 4096 and "transformer.w" not in name for name, value in bundle.model.named_parameters()
    )
    rest = len(list(bundle.model.parameters())) - large
    assert large == 4, "embeddings keep float32 moments"
    assert f"{2 * large} optimizer moments in 8-bit numbers, as configured" in parameters.evidence
    assert f"{2 * rest} optimizer moments float32" in parameters.evidence
    assert parameters.dtype == "float32"


def test_names_of_the_library_pass_through(tmp_path: Path) -> None:
    names = [one.value for one in OptimizerNames]
    assert len(names) > 30
    assert [optimizer_name(name) for name in names] == names
    assert training_arguments(_config("sgd"), tmp_path, 10).optim == "sgd"
    assert _fit(_config("adafactor"), tmp_path).training.optimizer == "adafactor"


def test_an_unknown_name_is_reported_with_all_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        training_arguments(_config("adamw-8bits", adam_beta_2=0.9, optim="sgd"), tmp_path, 10)
    message = str(raised.value)
    assert len(raised.value.problems) == 3
    assert "field 'train.optimizer': there is no optimizer 'adamw-8bits'" in message
    assert "Did you mean 'adamw-8bit'?" in message
    assert "Set train.optimizer and remove trainer.optim" in message
    with pytest.raises(ConfigError, match="Choose one of adamw, adamw-8bit, adamw_torch"):
        optimizer_name("nothing like it")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("adamw-8bit", "lion_32bit", "paged_adamw_32bit"):
        with pytest.raises(MissingDependencyError, match=r"needs bitsandbytes, which is not.*\[adapters\]"):
            optimizer_name(name)
    assert optimizer_name("adamw") == "adamw_torch_fused"
    assert optimizer_name("adamw_torch_8bit") == "adamw_torch_8bit"


def test_names_of_optimizers_with_8_bit_moments() -> None:
    names = ["adamw", "adamw-8bit", "lion_8bit", "paged_adamw_32bit"]
    assert [has_8bit_state(name) for name in names] == [False, True, True, False]


def test_the_bytes_of_an_optimizer_are_those_of_its_tensors() -> None:
    weight = torch.nn.Parameter(torch.ones(10))
    optimizer = torch.optim.AdamW([weight])
    assert state_bytes(optimizer) == 0
    weight.grad = torch.ones(10)
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 40 + 4
