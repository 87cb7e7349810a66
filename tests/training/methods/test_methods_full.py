from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
import torch

from fulltune import Config, ConfigError, ModelError
from fulltune.models import load as models
from fulltune.tasks.base import Features
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.methods.full import Full
from fulltune.training.methods.proof import fingerprints, tied_parameters


def _config(**trainer: Any) -> Config:
    train = {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "evaluations": 0}
    return Config(model="m", task="causal-lm", data={"train": "x"}, train=train, trainer=trainer)


def _fit(bundle: Any, folder: Path, **options: Any) -> TrainingResult:
    config = _config(**options.pop("trainer", {}))
    ids = [bundle.tokenizer(text).input_ids for text in ("the fox", "a king", "law", "the court")]
    labels: Any = (lambda ids: 1) if bundle.head == "classification" else list
    features = [Features(row, labels(row), str(number)) for number, row in enumerate(ids)]
    return fit(bundle, Full(config), features, None, config, output_dir=folder, **options)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_the_proof_counts_the_tensors(kind: str, tmp_path: Path) -> None:
    bundle = fakes.bundle(kind)
    parameters = _fit(bundle, tmp_path).parameters
    total = sum(value.numel() for value in bundle.model.parameters())
    assert (parameters.total, parameters.trainable, parameters.frozen) == (total, total, 0)
    assert (parameters.dtype, parameters.moved) == ("float32", 1.0)
    text = "\n".join(parameters.evidence)
    assert "0 frozen" in text
    assert "TF32 off" in text
    assert f"{2 * len(list(bundle.model.parameters()))} optimizer moments float32" in text


@pytest.mark.parametrize(("kind", "pairs"), [("gpt2", 1), ("t5", 3), ("bart", 3), ("bert", 2), ("llama", 0)])
def test_tied_weights_stay_tied(kind: str, pairs: int, tmp_path: Path) -> None:
    bundle = fakes.bundle(kind)
    parameters = _fit(bundle, tmp_path).parameters
    assert len(parameters.tied) == pairs
    if kind != "llama":
        inner, outer = bundle.model.get_input_embeddings(), bundle.model.get_output_embeddings()
        assert inner.weight is outer.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    model.to(dtype).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    bundle = models.load(str(tmp_path / "base"))
    parameters = _fit(bundle, tmp_path).parameters
    assert {value.dtype for value in bundle.model.parameters()} == {torch.float32}
    assert parameters.moved == 1.0


def test_a_model_in_half_precision_is_made_float32_too(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2")
    bundle.model.to(torch.bfloat16)
    assert _fit(bundle, tmp_path).parameters.dtype == "float32"


def test_frozen_parameters_are_unfrozen(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2")
    bundle.model.requires_grad_(False)
    assert _fit(bundle, tmp_path).parameters.frozen == 0


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert"])
def test_grown_embeddings_are_reported(kind: str, tmp_path: Path) -> None:
    bundle = models.load(str(fakes.save_with_tokens(kind, tmp_path, ["<one>", "<two>"])))
    method = Full(_config())
    method.prepare(bundle)
    assert "grown by 2 rows" in "\n".join(method.proof(bundle).evidence)


def test_embeddings_never_shrink() -> None:
    bundle = fakes.bundle("gpt2")
    bundle.model.resize_token_embeddings(400)
    Full(_config()).prepare(bundle)
    assert bundle.model.get_input_embeddings().weight.shape[0] == 400


@pytest.mark.parametrize("name", ["bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval"])
def test_reduced_precision_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"field 'trainer.{name}': reduced precision; expected float32. Remove it"):
        Full(_config(**{name: True}))


def test_tensors_without_a_gradient_are_named(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2")
    bundle.model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    parameters = _fit(bundle, tmp_path).parameters
    assert "no gradient (not part of the loss): unused" in parameters.evidence
    assert parameters.moved < 1.0


def test_moments_in_other_precision_are_refused(tmp_path: Path) -> None:
    class Halved(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            for kept in self.state.values():
                kept["exp_avg"] = kept["exp_avg"].bfloat16()
            return result

    from fulltune import Trainer

    model, tokenizer = fakes.gpt2()
    trainer = Trainer(
        model=model,
        args=fakes.arguments(tmp_path, num_train_epochs=1),
        train_dataset=[dict(tokenizer("the fox"))],
        callbacks=list(Full(_config()).callbacks()),
        optimizers=(Halved(model.parameters()), None),
    )
    with pytest.raises(ModelError, match=r"28 tensors have optimizer moments that are not float32: transformer\.h\.0"):
        trainer.train()


def test_what_breaks_the_promise_is_named() -> None:
    bundle = fakes.bundle("gpt2")
    method = Full(_config())
    method.prepare(bundle)
    bundle.model.transformer.wpe.weight.requires_grad_(False)
    with pytest.raises(ModelError, match=r"1 tensors are frozen: transformer\.wpe\.weight"):
        method.proof(bundle)
    bundle.model.requires_grad_(True)
    bundle.model.transformer.ln_f.half()
    with pytest.raises(ModelError, match=r"2 tensors are not float32: transformer\.ln_f\.bias"):
        method.proof(bundle)


def test_untied_weights_are_detected() -> None:
    bundle = fakes.bundle("gpt2")
    method = Full(_config())
    method.prepare(bundle)
    bundle.model.lm_head.weight = torch.nn.Parameter(bundle.model.lm_head.weight.clone())
    with pytest.raises(ModelError, match="are no longer tied"):
        method.proof(bundle)


def test_an_untrained_model_is_unchanged() -> None:
    bundle = fakes.bundle("gpt2")
    method = Full(_config())
    method.prepare(bundle)
    assert method.proof(bundle).moved == 0.0
    with torch.no_grad():
        bundle.model.transformer.wpe.weight[0, 0] += 1e-6
    assert method.proof(bundle).moved == pytest.approx(1 / 28)


def test_fingerprints_differ_by_a_bit() -> None:
    model, _ = fakes.gpt2()
    before = fingerprints(model)
    assert before == fingerprints(model)
    assert len(before) == 28
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nextafter(model.transformer.ln_f.weight[0], torch.tensor(2.0))
    changed = {name for name, value in fingerprints(model).items() if value != before[name]}
    assert changed == {"transformer.ln_f.weight"}


def test_tied_parameters_are_named_once_each() -> None:
    model, _ = fakes.gpt2()
    assert tied_parameters(model) == ("transformer.wte.weight = lm_head.weight",)
