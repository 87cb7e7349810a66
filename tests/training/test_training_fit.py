from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from matrix import often
from transformers import TrainerCallback

from fulltune import Config, DataError
from fulltune.config import EvaluationConfig, GuardsConfig
from fulltune.models.bundle import Bundle
from fulltune.records.run import Step, without_discarded
from fulltune.runtime import machine
from fulltune.tasks.base import Features
from fulltune.training.arguments import checkpointing_name, evaluation_steps
from fulltune.training.callbacks import GiveBackPages
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.methods.full import Full

TEXTS = ("a fox", "the king", "red", "the court shall", "no", "law is law")


def _config(**train: Any) -> Config:
    standard = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "evaluations": 0}
    return Config(model="m", task="causal-lm", data={"train": "x"}, train=standard | train)


def _features(bundle: Bundle, texts: Any = TEXTS) -> list[Features]:
    end = [bundle.tokenizer.eos_token_id] if bundle.tokenizer.eos_token_id is not None else []
    rows = []
    for index, text in enumerate(texts):
        ids = bundle.tokenizer(text).input_ids
        if bundle.family == "decoder":
            ids = [*end, *ids, *end]
        labels: Any = index % 2 if bundle.head == "classification" else list(ids)
        rows.append(Features(ids, labels, f"row:{index + 1}"))
    return rows


def _fit(bundle: Bundle, folder: Path, config: Config | None = None, **options: Any) -> TrainingResult:
    config = config or _config()
    valid = options.pop("valid", None)
    features = options.pop("features", None) or _features(bundle)
    return fit(bundle, Full(config), features, valid, config, output_dir=folder, **options)


CASES = [(kind, "lm") for kind in ("gpt2", "llama", "t5", "bart")]
CASES += [(kind, "classification") for kind in ("gpt2", "llama", "bert", "t5", "bart")]


@pytest.mark.parametrize(
    ("kind", "head"), often(CASES, lambda case: case in [("gpt2", "lm"), ("t5", "lm"), ("bert", "classification")])
)
def test_every_family_and_head_learns(kind: str, head: Any, tmp_path: Path) -> None:
    bundle = fakes.bundle(kind, head)
    valid = _features(bundle)
    result = _fit(bundle, tmp_path, _config(evaluations=1, epochs=4), valid=valid)
    curve = [step.eval_loss for step in result.steps if step.eval_loss is not None]
    assert len(curve) == 2
    assert curve[-1] < curve[0]
    assert result.parameters.moved == 1.0
    assert result.stopped is None
    assert not bundle.model.training
    assert bundle.model.config.use_cache is True or kind == "bert"


def test_freed_pages_are_returned_before_training_periodically_and_after_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[None] = []
    monkeypatch.setattr(machine, "give_back_freed_pages", lambda: times.append(None))
    monkeypatch.setattr(GiveBackPages, "EVERY", 2)
    bundle = fakes.bundle("gpt2")
    result = _fit(bundle, tmp_path, _config(evaluations=1), valid=_features(bundle))
    evaluated = [step for step in result.steps if step.eval_loss is not None]
    assert (result.training.steps, len(evaluated)) == (6, 2)
    assert len(times) == 1 + 3 + 2


def test_evaluations_during_training_batch_rows_of_similar_length(tmp_path: Path) -> None:
    bundle = fakes.bundle("bert", "classification")
    valid = _features(bundle, ("no", "the court shall", "no", "the court shall"))
    short, long = (len(valid[index].input_ids) for index in (0, 1))
    shapes: list[tuple[int, ...]] = []

    def note(embeddings: Any, args: Any) -> None:
        if not embeddings.training:
            shapes.append(tuple(args[0].shape))

    config = _config(evaluations=1).model_copy(update={"evaluation": EvaluationConfig(batch_size=2)})
    with bundle.model.get_input_embeddings().register_forward_pre_hook(note):
        result = _fit(bundle, tmp_path, config, valid=valid)
    assert short < long
    # Others are of checks of the model before training.
    assert shapes[-2:] == [(2, short), (2, long)]
    assert shapes.count((2, long)) == 2
    by_hand = [
        torch.nn.functional.cross_entropy(
            bundle.model(input_ids=torch.tensor([row.input_ids])).logits, torch.tensor([row.labels])
        ).item()
        for row in valid
    ]
    logged = [step.eval_loss for step in result.steps if step.eval_loss is not None]
    assert logged[-1] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"accumulation": 2, "gradient_checkpointing": True}])
def test_the_same_config_twice_gives_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    weights, curves = [], []
    for _ in range(2):
        bundle = fakes.bundle("gpt2")
        result = _fit(bundle, tmp_path, _config(evaluations=2, **options), valid=_features(bundle))
        weights.append(bundle.model.state_dict())
        curves.append(result.steps)
        torch.rand(3)  # what happened between two runs must not matter
    assert curves[0] == curves[1]
    assert len(weights[0]) > 20
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_another_seed_gives_another_order(tmp_path: Path) -> None:
    losses = []
    for seed in (1, 2):
        bundle = fakes.bundle("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        losses.append([step.loss for step in _fit(bundle, tmp_path, _config(seed=seed)).steps])
    assert losses[0] != losses[1]


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    weights = []
    for recompute in (False, True):
        bundle = fakes.bundle("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        _fit(bundle, tmp_path, _config(gradient_checkpointing=recompute))
        assert not getattr(bundle.model, f"is_{checkpointing_name()}")
        weights.append(bundle.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])


def test_end_of_text_is_learned_although_it_is_the_padding(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    assert bundle.tokenizer.pad_token_id == bundle.tokenizer.eos_token_id
    texts = ("abc", "de", "fghijk")
    _fit(bundle, tmp_path, _config(epochs=40, learning_rate=1e-2), features=_features(bundle, texts))
    for text in texts:
        start = torch.tensor([[bundle.tokenizer.eos_token_id, *bundle.tokenizer(text[0]).input_ids]])
        generated = bundle.model.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=12, do_sample=False, pad_token_id=0
        )[0]
        assert bundle.tokenizer.decode(generated, skip_special_tokens=True) == text
        assert generated[-1] == bundle.tokenizer.eos_token_id


def test_the_training_record_is_correct(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2")
    features = _features(bundle)
    training = _fit(bundle, tmp_path, _config(scheduler="linear", warmup=0.5)).training
    assert (training.steps, training.epochs, training.rows) == (6, 2.0, 6)
    assert training.tokens == 2 * sum(len(item.input_ids) for item in features)
    assert (training.optimizer, training.scheduler, training.warmup_steps) == ("adamw_torch_fused", "linear", 3)
    assert any("effective batch is 2" in line for line in training.advice)


def test_steps_are_handed_over_as_they_are_logged(tmp_path: Path) -> None:
    seen: list[tuple[Step, int]] = []
    bundle = fakes.bundle("gpt2")
    valid = _features(bundle)[:2]
    result = _fit(
        bundle, tmp_path, _config(evaluations=3), valid=valid, on_step=lambda step, total: seen.append((step, total))
    )
    assert [step for step, _ in seen] == list(result.steps)
    assert {total for _, total in seen} == {6}
    assert [step.step for step in result.steps if step.loss is not None] == [1, 2, 3, 4, 5, 6]
    assert [step.step for step in result.steps if step.eval_loss is not None] == [0, 2, 4, 6]
    assert all(step.learning_rate is not None and step.grad_norm is not None for step in result.steps if step.loss)


def test_without_validation_rows_there_is_no_curve(tmp_path: Path) -> None:
    result = _fit(fakes.bundle("gpt2"), tmp_path, _config(evaluations=3))
    assert all(step.eval_loss is None for step in result.steps)


@pytest.mark.parametrize(
    ("total", "points", "steps"), [(10, 4, (3, 5, 8, 10)), (2, 4, (1, 2)), (5, 0, ()), (1, 1, (1,))]
)
def test_evaluations_are_evenly_spaced(total: int, points: int, steps: tuple[int, ...]) -> None:
    assert evaluation_steps(total, points) == steps


def _break_passes(bundle: Bundle, *passes: int) -> None:
    """Set the logits of these training passes (counted from 1) to NaN."""
    count = 0

    def spoil(module: Any, args: Any, output: Any) -> Any:
        nonlocal count
        if module.training:
            count += 1
            if count in passes:
                return output * float("nan")
        return output

    bundle.model.get_output_embeddings().register_forward_hook(spoil)


def test_a_failed_run_is_reported_with_intact_weights(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2")
    _break_passes(bundle, 3)
    config = _config().model_copy(update={"guards": GuardsConfig(divergence=None)})
    result = _fit(bundle, tmp_path, config)
    assert result.stopped is not None
    assert "the loss became nan at step 3 (rows row:" in str(result.stopped)
    assert result.training.steps == 2
    assert [(event.guard, event.verdict) for event in result.guards] == [("finite", "stop")]
    assert all(torch.isfinite(value).all() for value in bundle.model.state_dict().values())


def test_a_run_that_rolls_back_reports_it_and_succeeds(tmp_path: Path) -> None:
    """The first steps are taken twice; the record counts them once, the log of every step twice and distinguishable."""
    bundle, seen = fakes.bundle("gpt2"), list[Step]()
    _break_passes(bundle, 4)
    result = _fit(
        bundle,
        tmp_path,
        _config(evaluations=2),
        valid=_features(bundle)[:2],
        on_step=lambda step, total: seen.append(step),
    )
    assert result.stopped is None
    assert [(event.guard, event.step, event.verdict) for event in result.guards] == [("divergence", 4, "roll back")]
    assert "the learning rate is 0.3 of the configured one" in result.guards[0].message
    assert [step.step for step in seen if step.loss is not None] == [1, 2, 3, 1, 2, 3, 4, 5, 6]
    assert [step.attempt for step in seen if step.loss is not None] == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [step.step for step in result.steps if step.loss is not None] == [1, 2, 3, 4, 5, 6]
    assert [step.step for step in result.steps if step.eval_loss is not None] == [0, 3, 6]
    assert list(result.steps) == without_discarded(seen)
    assert not list(tmp_path.rglob("checkpoint*"))


def test_a_run_that_rolls_back_too_often_stops_with_intact_weights(tmp_path: Path) -> None:
    bundle = fakes.bundle("gpt2")
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    _break_passes(bundle, 4, 6, 7)
    result = _fit(bundle, tmp_path)
    assert result.stopped is not None
    assert "the loss became nan at step 1 (rows row:" in str(result.stopped)
    assert "after 2 roll-backs" in str(result.stopped)
    assert [event.verdict for event in result.guards] == ["roll back", "roll back", "stop"]
    assert (result.training.steps, result.steps) == (0, ())
    assert all(torch.equal(value, before[name]) for name, value in bundle.model.state_dict().items())


def test_callbacks_can_stop_training(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = True
            return control

    assert _fit(fakes.bundle("gpt2"), tmp_path, callbacks=[Stop()]).training.steps == 1


def test_class_weights_reach_the_loss(tmp_path: Path) -> None:
    losses = []
    for weights in (None, [1.0, 9.0]):
        bundle = fakes.bundle("bert", "classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        losses.append([step.loss for step in _fit(bundle, tmp_path, class_weights=weights).steps])
    assert losses[0] != losses[1]


def test_nothing_is_written_by_default(tmp_path: Path) -> None:
    _fit(fakes.bundle("gpt2"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.*"))


def test_no_features_are_refused(tmp_path: Path) -> None:
    config = _config()
    with pytest.raises(DataError, match="nothing to train on"):
        fit(fakes.bundle("gpt2"), Full(config), [], None, config, output_dir=tmp_path)
