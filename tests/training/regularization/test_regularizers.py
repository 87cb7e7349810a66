"""Dropout of a complete model, R-Drop against the authors' formula, NEFTune, and their config keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matrix import often
from torch import nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from fulltune import Config, ConfigError, Trainer
from fulltune.models.losses import class_divergence, label_divergence
from fulltune.pipeline import job
from fulltune.tasks.base import Features
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.methods.full import Full
from fulltune.training.regularization.dropout import set_dropout

KINDS = ("gpt2", "llama", "bert", "t5", "bart")


def inputs(kind: str, head: str = "lm") -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    if kind == "t5" and head == "classification":
        ids[:, -1] = 1  # T5's head reads the state at the end-of-text token
    if kind == "bart" and head == "classification":
        ids[:, -1] = 2
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return found | ({"decoder_input_ids": ids[:, :6]} if kind in ("t5", "bart") and head == "lm" else {})


# ---- Dropout ----


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Record the probabilities of all dropout that is computed, of layers and of attention weights."""
    seen: dict[str, list[float]] = {"layers": [], "attention": []}
    dropout, attention = F.dropout, F.scaled_dot_product_attention

    def layers(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if training:
            seen["layers"].append(p)
        return dropout(input, p, training, inplace)

    def weights(*args: Any, dropout_p: float = 0.0, **kwargs: Any) -> Any:
        seen["attention"].append(dropout_p)
        return attention(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(F, "dropout", layers)
    monkeypatch.setattr(F, "scaled_dot_product_attention", weights)
    return seen


@pytest.mark.parametrize("head", ["lm", "classification"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_computed_dropout_has_the_configured_probability(
    kind: str, head: str, attention: str, computed: dict[str, list[float]]
) -> None:
    model, _ = fakes.make(kind, head)
    if kind != "t5":
        model.set_attn_implementation(attention)
    assert set_dropout(model, 0.37) >= 2
    model.train()(**inputs(kind, head))
    assert len(computed["layers"]) + len(computed["attention"]) >= 2
    assert set(computed["layers"] + computed["attention"]) == {0.37}


@pytest.mark.parametrize("kind", KINDS)
def test_no_dropout_makes_training_passes_equal_and_some_makes_them_differ(kind: str) -> None:
    model, _ = fakes.make(kind)
    model.train()
    for probability, equal in ((0.0, True), (0.5, False)):
        set_dropout(model, probability)
        first, second = (model(**inputs(kind)).logits for _ in range(2))
        assert torch.equal(first, second) == equal


def test_dropping_whole_layers_is_left_alone_and_the_config_goes_with_the_model() -> None:
    model, _ = fakes.bart(encoder_layerdrop=0.25)
    set_dropout(model, 0.37)
    assert model.config.encoder_layerdrop == model.model.encoder.layerdrop == 0.25
    assert (model.config.dropout, model.config.attention_dropout) == (0.37, 0.37)
    assert fakes.bert()[0].config.classifier_dropout is None


@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_a_config_whose_dropout_must_be_an_integer(
    probability: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import MptConfig, MptForCausalLM

    model = MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=40, max_seq_len=32)).train()
    set_dropout(model, probability)
    block = model.transformer.blocks[0]
    assert (block.attn.attn_dropout_p, block.resid_attn_dropout.p) == (probability, probability)
    assert model.config.attn_config.attn_pdrop == 0
    assert ("attn_pdrop" in caplog.text) == (probability > 0)
    model.save_pretrained(tmp_path)


def test_a_model_without_dropout_is_reported() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, state_size=2))
    with pytest.raises(ConfigError, match="has no dropout"):
        set_dropout(model, 0.1)


# ---- R-Drop ----


@given(seed=st.integers(0, 99), scale=st.sampled_from([0.1, 1.0, 3.0]))
def test_divergences_are_those_of_torch(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (scale * torch.randn(3, 5, generator=generator) for _ in range(2))
    for ours, kind in ((class_divergence, Categorical), (label_divergence, Bernoulli)):
        p, q = kind(logits=first), kind(logits=second)
        expected = (kl_divergence(p, q) + kl_divergence(q, p)) / 2
        expected = expected if expected.dim() == 1 else expected.sum(dim=-1)
        torch.testing.assert_close(ours(first, second), expected, rtol=1e-4, atol=1e-5)
        assert (ours(first, first) == 0).all()


def authors_loss(model: nn.Module, batch: dict[str, Any], alpha: float, weights: torch.Tensor | None) -> torch.Tensor:
    """Compute the loss as in their README: ½ (CE₁ + CE₂) + α ½ (KL(p‖q) + KL(q‖p)), a mean over rows."""
    rest = {name: value for name, value in batch.items() if name != "labels"}
    first, second = model(**rest).logits, model(**rest).logits
    ce = [F.cross_entropy(logits, batch["labels"], weight=weights) for logits in (first, second)]
    p, q = F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)
    rows = (F.kl_div(p, q.exp(), reduction="none") + F.kl_div(q, p.exp(), reduction="none")).sum(-1) / 2
    counts = torch.ones(len(rows)) if weights is None else weights[batch["labels"]]
    return (ce[0] + ce[1]) / 2 + alpha * (rows * counts).sum() / counts.sum()


@pytest.mark.parametrize("weights", [None, [1.0, 9.0]])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_r_drop_is_that_of_its_authors(kind: str, weights: list[float] | None, tmp_path: Path) -> None:
    model, _ = fakes.make(kind, "classification")
    batch = inputs(kind, "classification") | {"labels": torch.tensor([0, 1, 1, 0])}
    set_dropout(model, 0.3)
    trainer = Trainer(model=model, args=fakes.arguments(tmp_path), r_drop=2.5, class_weights=weights)
    model.train()
    found = []
    for compute in (
        lambda: trainer.compute_loss(model, dict(batch)),
        lambda: authors_loss(model, batch, 2.5, None if weights is None else torch.tensor(weights)),
    ):
        torch.manual_seed(5)
        model.zero_grad()
        loss = compute()
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert len(found[0][1]) == len(found[1][1]) > 5
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_without_dropout_r_drop_changes_nothing_and_never_the_evaluation(tmp_path: Path) -> None:
    model, _ = fakes.make("bert", "classification", multi_label=True)
    batch = inputs("bert") | {"labels": torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])}
    plain, ours = (Trainer(model=model, args=fakes.arguments(tmp_path), r_drop=alpha) for alpha in (0.0, 9.0))
    set_dropout(model, 0.0)
    model.train()
    torch.testing.assert_close(plain.compute_loss(model, dict(batch)), ours.compute_loss(model, dict(batch)))
    set_dropout(model, 0.4)
    assert ours.compute_loss(model, dict(batch)) > plain.compute_loss(model, dict(batch))
    model.eval()
    torch.testing.assert_close(plain.compute_loss(model, dict(batch)), ours.compute_loss(model, dict(batch)))


def test_r_drop_needs_classes_and_dropout(tmp_path: Path) -> None:
    model, _ = fakes.gpt2()
    with pytest.raises(ConfigError, match="R-Drop for GPT2LMHeadModel"):
        Trainer(model=model, args=fakes.arguments(tmp_path), r_drop=1.0)
    with pytest.raises(ConfigError, match="R-Drop for the task causal-lm; expected a task with classes"):
        job.checked_task_and_method(_config("causal-lm", r_drop=1.0))
    with pytest.raises(ConfigError, match="R-Drop without dropout"):
        job.checked_task_and_method(_config("classification", r_drop=1.0, dropout=0.0))


# ---- In a run ----


def _config(task: str = "classification", trainer: dict[str, Any] | None = None, **regularize: Any) -> Config:
    train = {"max_steps": 6, "batch_size": 2, "learning_rate": 1e-3, "evaluations": 1}
    return Config(model="m", task=task, data={"train": "x"}, train=train, regularize=regularize, trainer=trainer or {})


def _run(kind: str, folder: Path, config: Config) -> TrainingResult:
    head = "classification" if config.task == "classification" else "lm"
    bundle = fakes.bundle(kind, head)
    rows = []
    for row in range(6):
        ids = bundle.tokenizer(f"the king {row} is a fox").input_ids
        rows.append(Features(ids, row % 2 if head == "classification" else list(ids), f"row:{row}"))
    result = fit(bundle, Full(config), rows, rows, config, output_dir=folder)
    assert not any(module._forward_hooks for module in bundle.model.modules())
    return result


@pytest.mark.parametrize(
    ("trainer", "options", "expected"),
    [
        ({}, {}, {}),
        ({}, {"dropout": 0.0, "layer_decay": 1.0}, {"dropout": 0.0}),
        (
            {"neftune_noise_alpha": 5},
            {"l2_sp": 0.02, "r_drop": 1.0},
            {"l2_sp": 0.02, "r_drop": 1.0, "neftune_noise_alpha": 5.0},
        ),
    ],
)
def test_the_record_has_the_strength_of_each_active_regularizer(
    trainer: dict[str, Any], options: dict[str, float], expected: dict[str, float], tmp_path: Path
) -> None:
    training = _run("bert", tmp_path, _config(trainer=trainer, **options)).training
    assert (training.regularization, training.general_text) == (expected, "")


def test_the_record_has_the_source_of_general_text(tmp_path: Path) -> None:
    settings = _config("seq2seq", replay=0.25, ewc=0.1, layer_decay=0.9, replay_from="general.txt")
    training = _run("gpt2", tmp_path, settings).training
    assert training.regularization == {"replay": 0.25, "ewc": 0.1, "layer_decay": 0.9}
    assert training.general_text == "general.txt"


def _curves(result: TrainingResult) -> tuple[list[float], list[float]]:
    training = [step.loss for step in result.steps if step.loss is not None]
    return training, [step.eval_loss for step in result.steps if step.eval_loss is not None]


@pytest.mark.parametrize("option", [{"dropout": 0.5}, {"r_drop": 5.0}])
def test_regularizers_are_config_keys(option: dict[str, float], tmp_path: Path) -> None:
    (plain, start), (changed, same_start) = (
        _curves(_run("bert", tmp_path, _config(**options))) for options in ({}, option)
    )
    assert plain != changed
    assert start[0] == same_start[0]  # what is evaluated never changes


@pytest.mark.parametrize("kind", often(KINDS, lambda kind: kind in ("gpt2", "bert")))
def test_neftune_is_a_key_of_the_trainers_section(kind: str, tmp_path: Path) -> None:
    (plain, start), (noisy, same_start) = (
        _curves(_run(kind, tmp_path, _config("seq2seq", trainer, dropout=0.0)))
        for trainer in ({}, {"neftune_noise_alpha": 30.0})
    )
    assert len(plain) == len(noisy) > 3
    assert plain[0] != noisy[0]
    assert start[0] == same_start[0]
