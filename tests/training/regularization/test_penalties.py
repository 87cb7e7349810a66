"""Each regularizer against an independent computation on tiny models."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from torch import nn

from fulltune.config import Config, load_config
from fulltune.errors import ArgumentError, ConfigError
from fulltune.models.bundle import Bundle
from fulltune.tasks.base import Features
from fulltune.training.batches.collate import FeatureDataset
from fulltune.training.regularization import costs, general_text
from fulltune.training.regularization.layer_decay import decay_by_layer, distances
from fulltune.training.regularization.penalties import (
    Anchor,
    Distillation,
    Regularizer,
    StepPenalties,
    diagonal_fisher,
    kl_divergence,
    regularizers,
    shared_parameters,
)
from fulltune.training.trainer import Trainer

TEXTS = ["the king has a red fox", "it was not the law of the state", "a film about a dog", "this is good"]


def config(**regularize: Any) -> Config:
    return load_config({"model": "m", "task": "causal-lm", "data": {"train": "x"}, "regularize": regularize})


def shaken(bundle: Bundle, size: float = 0.05) -> Bundle:
    with torch.no_grad():
        for number, parameter in enumerate(bundle.model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise * size)
    return bundle


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], count: int, **tolerance: float
) -> None:
    assert len(wanted) >= count
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **(tolerance or {"rtol": 1e-5, "atol": 1e-7}))


# ---- Weights ----


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bart"])
def test_l2_sp_adds_the_gradient_of_its_penalty(kind: str) -> None:
    base, tuned = fakes.bundle(kind), shaken(fakes.bundle(kind))
    start = dict(base.model.named_parameters())
    penalty = sum((0.3 / 2 * (p - start[n].detach()).square().sum() for n, p in tuned.model.named_parameters()))
    wanted = torch.autograd.grad(penalty, list(tuned.model.parameters()))
    [anchor] = regularizers(config(l2_sp=0.3), base, tuned, ())
    for parameter in tuned.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    anchor.backward(0)
    names = [name for name, _ in tuned.model.named_parameters()]
    expected = {name: 1 + gradient for name, gradient in zip(names, wanted, strict=True)}
    assert_same(gradients(tuned.model), expected, 10)


def test_a_base_that_is_trained_in_place_is_copied_first() -> None:
    base = fakes.bundle("gpt2")
    [anchor] = regularizers(config(l2_sp=1.0), base, base, ())
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    shaken(base)
    anchor.backward(0)
    assert_same(gradients(base.model), {n: p.detach() - before[n] for n, p in base.model.named_parameters()}, 10)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_a_new_head_has_no_anchor_and_the_base_is_not_copied(kind: str) -> None:
    base, tuned = fakes.bundle(kind), fakes.bundle(kind, "classification", seed=1)
    anchors = shared_parameters(base, tuned)
    body = {id(p) for p in tuned.model.base_model.parameters()}
    own = {id(anchor.parameter) for anchor in anchors}
    pooler = {id(p) for n, p in tuned.model.named_parameters() if "pooler" in n}
    assert len(anchors) > 10
    assert own == body - pooler
    assert {a.base.data_ptr() for a in anchors} <= {p.data_ptr() for p in base.model.parameters()}


def test_embeddings_that_grew_are_anchored_where_the_base_has_rows() -> None:
    base, tuned = fakes.bundle("gpt2"), fakes.bundle("gpt2")
    tuned.model.resize_token_embeddings(len(base.tokenizer) + 7)
    shaken(tuned)
    Anchor(1.0, shared_parameters(base, tuned)).backward(0)
    grad = tuned.model.get_input_embeddings().weight.grad
    assert grad[-7:].abs().sum() == 0
    assert (grad[:-7] != 0).float().mean() > 0.99


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5"])
def test_the_fisher_information_is_the_mean_squared_gradient_of_each_sequence_alone(kind: str) -> None:
    base = fakes.bundle(kind)
    features = general_text.encode(base, TEXTS)
    names = [name for name, _ in base.model.named_parameters()]
    found = diagonal_fisher(base, features, names)
    sums = {name: torch.zeros_like(p) for name, p in base.model.named_parameters()}
    for item in features:
        model = copy.deepcopy(base.model)
        model(input_ids=torch.tensor([item.input_ids]), labels=torch.tensor([item.labels])).loss.backward()
        for name, parameter in model.named_parameters():
            sums[name] += parameter.grad.square() if parameter.grad is not None else 0
    mean = torch.cat([total.flatten() for total in sums.values()]).mean()
    assert_same(found, {name: total / mean for name, total in sums.items()}, 10, rtol=1e-3, atol=1e-6)
    assert torch.cat([value.flatten() for value in found.values()]).mean() == pytest.approx(1.0, rel=1e-4)
    assert not gradients(base.model)


def test_ewc_pulls_each_parameter_by_its_fisher_information() -> None:
    base, tuned = fakes.bundle("bert"), shaken(fakes.bundle("bert", "classification"))
    features = general_text.encode(base, TEXTS)
    [anchor] = regularizers(config(ewc=0.2), base, tuned, features)
    anchor.backward(0)
    names = [shared.name for shared in shared_parameters(base, tuned)]
    fisher, start = diagonal_fisher(base, features, names), dict(base.model.base_model.named_parameters())
    now = dict(tuned.model.base_model.named_parameters())
    wanted = {name: 0.2 * fisher[name] * (now[name] - start[name]).detach() for name in names}
    found = gradients(tuned.model.base_model)
    assert_same({name: found[name] for name in names}, wanted, 10)


# ---- Predictions ----


def test_kl_is_the_sum_over_the_vocabulary() -> None:
    torch.manual_seed(0)
    base, tuned = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    p, q = base.softmax(-1), tuned.softmax(-1)
    wanted = (p * (p / q).log()).sum(-1).mean()
    assert kl_divergence(base, tuned).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert kl_divergence(base, base).item() == 0.0


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5"])
def test_distillation_is_the_gradient_of_the_kl_on_general_text(kind: str) -> None:
    base, tuned = fakes.bundle(kind), shaken(fakes.bundle(kind))
    features = general_text.encode(base, TEXTS)
    distillation = Distillation(0.7, base, base, tuned, features, seed=3)
    distillation.backward(0)
    other = shaken(fakes.bundle(kind)).model
    total, count = torch.zeros(()), 0
    for item in distillation.chosen(0):
        inputs = {"input_ids": torch.tensor([item.input_ids]), "labels": torch.tensor([item.labels])}
        p, q = base.model(**inputs).logits[0].softmax(-1).detach(), other(**inputs).logits[0].log_softmax(-1)
        for place, label in enumerate(item.labels):
            at = place - 1 if kind == "gpt2" else place
            if label != -100 and at >= 0:
                total, count = total + (p[at] * (p[at].log() - q[at])).sum(), count + 1
    (0.7 * total / count).backward()
    assert_same(gradients(tuned.model), gradients(other), 10, rtol=1e-3, atol=1e-6)


def test_a_model_with_a_new_head_is_distilled_through_the_bases_head() -> None:
    base, tuned = fakes.bundle("bert"), shaken(fakes.bundle("bert", "classification"))
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    [distillation] = regularizers(config(distill=1.0), base, tuned, general_text.encode(base, TEXTS))
    distillation.backward(0)
    found = gradients(tuned.model)
    assert found["bert.encoder.layer.0.output.dense.weight"].abs().sum() > 0
    assert "classifier.weight" not in found
    assert not gradients(base.model)
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())


def test_the_text_of_a_step_depends_on_its_number_alone_and_all_of_it_is_read() -> None:
    base = fakes.bundle("gpt2")
    features = general_text.encode(base, [f"text number {index}" for index in range(10)])
    distillation = Distillation(1.0, base, base, base, features, seed=3)
    read = [item.row_id for step in range(5) for item in distillation.chosen(step)]
    assert sorted(read[:10]) == sorted(read[10:20]) == sorted(item.row_id for item in features)
    assert [item.row_id for item in distillation.chosen(3)] == read[12:16]


# ---- In the trainer ----


def trained(
    model: nn.Module, folder: Path, batch: int, accumulation: int, kind: type[Trainer] = Trainer, **options: Any
) -> nn.Module:
    # Of one length: micro-batches have the same number of tokens, whatever their order.
    rows = [Features([3 + i, 4 + i, 5 + i, 6], [3 + i, 4 + i, 5 + i, 6], str(i)) for i in range(8)]
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 3}
    args = fakes.arguments(folder, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", **settings)
    kind(model=model, args=args, train_dataset=FeatureDataset(rows), **options).train()
    return model


def test_a_penalty_counts_once_per_step_for_any_accumulation(tmp_path: Path) -> None:
    """Compare three steps by hand, with the penalty in the loss, with the trainer at one and four micro-batches."""
    options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = []
    for batch, accumulation in ((8, 1), (2, 4)):
        base, tuned = shaken(fakes.bundle("gpt2", **options), 0.5), fakes.bundle("gpt2", **options)
        anchor = Anchor(0.5, shared_parameters(base, tuned))
        ends.append(trained(tuned.model, tmp_path, batch, accumulation, regularizers=[anchor]))
    model, start = fakes.bundle("gpt2", **options).model, dict(base.model.named_parameters())
    ids = torch.tensor([[3 + i, 4 + i, 5 + i, 6] for i in range(8)])
    for _ in range(3):
        penalty = sum(0.25 * (p - start[n].detach()).square().sum() for n, p in model.named_parameters())
        loss = model(input_ids=ids, labels=ids).loss + penalty
        values = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([value.flatten() for value in values]).norm()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), values, strict=True):
                parameter -= 0.1 * value / max(1.0, float(norm))
    wanted = {name: p.detach() for name, p in model.named_parameters()}
    for end in ends:
        assert_same({name: p.detach() for name, p in end.named_parameters()}, wanted, 10, rtol=1e-4, atol=1e-5)


class OwnBatches(Trainer):
    """Fetch the micro-batches without the trainer's own method."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        return [next(epoch_iterator) for _ in range(num_batches)], None


class OwnStep(Trainer):
    """Compute a micro-batch without the trainer's own method."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


def pulled(folder: Path, kind: type[Trainer] = Trainer, penalties: Sequence[Regularizer] = ()) -> list[int]:
    """Train three steps of two micro-batches; return the steps at which a penalty was added."""
    steps = list[int]()

    class Pull:
        def backward(self, step: int, scale: float = 1.0) -> None:
            steps.append(step)

    trained(fakes.bundle("gpt2").model, folder, 4, 2, kind=kind, regularizers=[Pull(), *penalties])
    return steps


def test_a_subclass_that_fetches_its_own_batches_keeps_the_penalties(tmp_path: Path) -> None:
    assert pulled(tmp_path) == pulled(tmp_path, OwnBatches) == [0, 1, 2]


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_subclass_whose_step_would_leave_the_penalties_out_is_refused(tmp_path: Path, max_grad_norm: float) -> None:
    class Clipped(OwnStep):
        def __init__(self, **options: Any) -> None:
            options["args"].max_grad_norm = max_grad_norm
            super().__init__(**options)

    with pytest.raises(ArgumentError, match=r"regularizers, but training_step .* Call super\(\).training_step"):
        pulled(tmp_path, Clipped)
    trained(fakes.bundle("gpt2").model, tmp_path, 4, 2, kind=OwnStep)  # without penalties it may do anything


def test_an_engine_that_shards_gradients_is_refused() -> None:
    StepPenalties([]).check_not_sharded()
    with pytest.raises(ArgumentError, match="regularizers with an engine that shards gradients"):
        StepPenalties([Anchor(1.0, ())]).check_not_sharded()


@pytest.mark.parametrize("name", ["l2_sp", "distill"])
def test_gradients_of_a_penalty_have_the_scale_of_the_loss(name: str, tmp_path: Path) -> None:
    """Compare the weights with and without a loss scaler, whose factor is a power of two."""
    options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = []
    for is_scaled in (False, True):
        base, tuned = shaken(fakes.bundle("gpt2", **options), 0.5), fakes.bundle("gpt2", **options)
        penalties = regularizers(config(**{name: 2.0}), base, tuned, general_text.encode(base, TEXTS))
        trained(tuned.model, tmp_path, 4, 2, regularizers=penalties, kind=Scaled if is_scaled else Unclipped)
        ends.append({key: p.detach() for key, p in tuned.model.named_parameters()})
    assert_same(*ends, 10)


class Unclipped(Trainer):
    """Accelerate removes the scale before clipping on accelerators alone; on a CPU the optimizer does."""

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None


class Scaled(Unclipped):
    """Scale the loss, which Accelerate does for FP16 on accelerators."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)


# ---- Rates by depth ----

BLOCKS = {
    "gpt2": ("transformer.wte.weight", "transformer.h.0.", "transformer.h.1.", "transformer.ln_f.weight"),
    "llama": ("model.embed_tokens.weight", "model.layers.0.", "model.layers.1.", "model.norm.weight"),
    "bert": ("bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer.1.", "cls.predictions.bias"),
    "t5": ("shared.weight", "encoder.block.0.", "encoder.block.1.", "encoder.final_layer_norm.weight"),
    "bart": ("model.shared.weight", "model.decoder.layers.0.", "model.decoder.layers.1.", "none"),
}


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_distance_from_the_top_by_family(kind: str) -> None:
    found = distances(fakes.bundle(kind).model)
    assert set(found.values()) >= {1, 2, 3}
    checked = 0
    for distance, prefix in zip((3, 2, 1, 0), BLOCKS[kind], strict=True):
        for name in (name for name in found if name.startswith(prefix)):
            checked += 1
            assert found[name] == distance, name
    assert checked > 10
    head = distances(fakes.bundle(kind, "classification").model)
    assert {value for name, value in head.items() if name.startswith(("score", "classifier", "classification_"))} == {0}


def test_lower_layers_get_lower_rates(tmp_path: Path) -> None:
    model = fakes.bundle("gpt2").model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    # One step: SGD moves a parameter by its rate times its gradient, so the changes have the ratio of the rates.
    slow = copy.deepcopy(model)
    args = fakes.arguments(tmp_path, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_steps=1)
    args.per_device_train_batch_size = 8
    rows = FeatureDataset([Features([3 + i, 4, 5], [3 + i, 4, 5], str(i)) for i in range(8)])
    plain = copy.deepcopy(model)
    for one, decay in ((slow, 0.5), (plain, 1.0)):
        trainer = Trainer(model=one, args=args, train_dataset=rows, layer_decay=decay)
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer.train()
    moved = {name: ((p.detach() - before[name]).norm()) for name, p in slow.named_parameters()}
    full = {name: ((p.detach() - before[name]).norm()) for name, p in plain.named_parameters()}
    ratios = {name: float(moved[name] / full[name]) for name in full if full[name] > 1e-6}
    assert len(ratios) > 10
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(0.5 ** distances(model)[name], rel=1e-2), name


class OwnOptimizer(Trainer):
    """A script that builds its optimizer itself."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer


class FrozenEmbeddings(Trainer):
    """A script that changes something, and leaves the optimizer to the trainer."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.model.get_input_embeddings().requires_grad_(False)
        return super().create_optimizer(model)


def test_layer_decay_is_never_ignored(tmp_path: Path) -> None:
    rows = FeatureDataset([Features([3 + i, 4, 5], [3 + i, 4, 5], str(i)) for i in range(8)])
    args = fakes.arguments(tmp_path, learning_rate=0.1, optim="sgd", max_steps=1)

    def trainer(kind: type[Trainer], decay: float = 0.5, **options: Any) -> Trainer:
        return kind(model=fakes.bundle("gpt2").model, args=args, train_dataset=rows, layer_decay=decay, **options)

    with pytest.raises(ArgumentError, match=r"layer_decay is set, and create_optimizer is overridden.*super\(\)"):
        trainer(OwnOptimizer).train()
    given = trainer(Trainer)
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="layer_decay is set, and an optimizer is given"):
        given.train()
    trainer(OwnOptimizer, decay=1.0).train()
    calling = trainer(FrozenEmbeddings)
    calling.train()
    assert len({group["initial_lr"] for group in calling.optimizer.param_groups}) > 1


def test_the_first_group_keeps_the_full_rate_and_no_parameter_is_lost() -> None:
    model = fakes.bundle("bert").model
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    decay_by_layer(optimizer, model, 0.9)
    groups = optimizer.param_groups
    assert [group["lr"] for group in groups] == sorted((group["lr"] for group in groups), reverse=True)
    assert groups[0]["lr"] == 1e-3
    assert groups[-1]["lr"] == pytest.approx(1e-3 * 0.9**3)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


# ---- General text ----


def test_a_base_generates_the_same_text_again_and_caches_it(tmp_path: Path) -> None:
    base = fakes.bundle("gpt2")
    short = replace(base, window=12)
    state = torch.random.get_rng_state()
    first = general_text.general_text(config(replay=0.5), short, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    shaken(base)  # the cache answers for the base's hash
    assert general_text.general_text(config(replay=0.5), short, tmp_path) == first
    assert len(set(first)) > 100
    assert general_text.general_text(config(replay=0.5), short) != first


def test_general_text_is_trained_with_the_pretraining_objective() -> None:
    decoder, encoder, both = (fakes.bundle(kind) for kind in ("gpt2", "bert", "t5"))
    [item] = general_text.encode(decoder, TEXTS[:1])
    end = decoder.tokenizer.eos_token_id
    assert item.input_ids == [*decoder.tokenizer(TEXTS[0]).input_ids, end]
    assert item.labels == [-100, *item.input_ids[1:]]
    [item] = general_text.encode(encoder, TEXTS[:1])
    places = [place for place, label in enumerate(item.labels) if label != -100]
    assert places
    assert {item.input_ids[place] for place in places} == {encoder.tokenizer.mask_token_id}
    [item] = general_text.encode(both, TEXTS[:1])
    assert both.tokenizer.decode(item.labels, skip_special_tokens=True) == TEXTS[0]
    assert len(item.input_ids) < len(item.labels)
    assert general_text.encode(both, ["", "a"]) == []


def test_the_fraction_of_general_text_is_the_configured_one() -> None:
    base = fakes.bundle("gpt2")
    task = general_text.encode(base, TEXTS * 3)
    general = general_text.encode(base, TEXTS[:2])
    found = general_text.mixed(task, general, costs.replayed(config(replay=0.25).regularize, len(task)))
    assert len(found) == 16
    assert found[:12] == task
    assert found[12:] == general * 2
    assert costs.replayed(config().regularize, 12) == 0


def heads() -> Sequence[tuple[str, str, dict[str, Any], str]]:
    return [
        ("bert", "classification", {"replay": 0.2, "replay_from": "x"}, "General text has no class"),
        ("t5", "lm", {"replay": 0.2}, "Text can be sampled from a decoder only"),
        ("bert", "classification", {"ewc": 1.0}, "set regularize.replay_from to a file"),
        ("gpt2", "lm", {"distill": 1.0, "replay_from": "builtin"}, "does not measure retention"),
    ]


@pytest.mark.parametrize(("kind", "head", "wanted", "message"), heads(), ids=lambda value: str(value)[:20])
def test_impossible_combinations_are_refused_with_the_reason(
    kind: str, head: Any, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        general_text.check(config(**wanted), head, fakes.bundle(kind))


def test_an_encoder_without_a_masked_lm_head_can_only_be_anchored() -> None:
    whole = fakes.bundle("bert")
    base = replace(whole, model=whole.model.base_model)
    with pytest.raises(ConfigError) as caught:
        general_text.check(config(ewc=1.0, distill=1.0, replay_from="x"), "classification", base)
    assert {problem.field for problem in caught.value.problems} == {"regularize.ewc", "regularize.distill"}
    general_text.check(config(l2_sp=1.0, layer_decay=0.9), "classification", base)
    [anchor] = regularizers(config(l2_sp=1.0), base, fakes.bundle("bert", "classification"), ())
    anchor.backward(0)


def test_the_same_file_under_another_name_is_still_the_probe(tmp_path: Path) -> None:
    (tmp_path / "probe.jsonl").write_text(json.dumps({"text": "a"}))
    (tmp_path / "other.jsonl").symlink_to(tmp_path / "probe.jsonl")
    guards = {"forgetting": {"probe": str(tmp_path / "probe.jsonl")}}
    asked = {"replay": 0.1, "replay_from": str(tmp_path / "other.jsonl")}
    job = load_config({"model": "m", "task": "t", "data": {"train": "x"}, "guards": guards, "regularize": asked})
    with pytest.raises(ConfigError, match="the probe"):
        general_text.check(job, "lm", fakes.bundle("gpt2"))


def test_the_cost_is_reported() -> None:
    lines = costs.advice_on_regularizers(config(l2_sp=0.1, ewc=0.1, distill=1.0), 2**28)
    assert lines[0] == "The regularizers keep 3 copies of the weights alongside the model: 3.0 GiB."
    assert len(lines) == 3
    assert costs.advice_on_regularizers(config(), 2**28) == []
    [small] = costs.advice_on_regularizers(config(ewc=0.1), 2**20)
    assert small == "The regularizers keep 2 copies of the weights alongside the model: 8 MiB."
