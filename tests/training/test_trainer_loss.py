"""The computations of the trainer against an unbatched loop and against the plain Trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from matrix import often
from torch import Tensor, nn
from transformers import TrainerCallback

from fulltune import ConfigError, DataError, Trainer
from fulltune.training.batches.collate import Collator

TEXTS = (
    "the court shall",
    "a",
    "a fox and a dog and a cat",
    "law is law",
    "no",
    "the king of the tale is old",
    "it",
    "red",
)
KINDS = ("gpt2", "llama", "bert", "t5", "bart")


def _no_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def _rows(kind: str, texts: Sequence[str] = TEXTS) -> tuple[Any, list[dict[str, Any]]]:
    """Return a model and rows of unequal lengths for its own head."""
    model, tokenizer = fakes.make(kind)
    rows = []
    for text in texts:
        ids = tokenizer(text).input_ids
        labels = tokenizer(text[: len(text) // 2 + 1]).input_ids if kind in ("t5", "bart") else list(ids)
        if kind in ("gpt2", "llama"):
            labels[:1] = [-100]
        rows.append({"input_ids": ids, "labels": labels})
    return _no_dropout(model), rows


def _class_rows(multi_label: bool = False, kind: str = "bert") -> tuple[Any, list[dict[str, Any]]]:
    labels = ("red", "green", "blue")
    model, tokenizer = fakes.make(kind, "classification", labels=labels, multi_label=multi_label)
    several = ([1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0])
    rows = [
        {"input_ids": tokenizer(text).input_ids, "labels": several[i % 4] if multi_label else (i * i) % 3}
        for i, text in enumerate(TEXTS)
    ]
    return _no_dropout(model), rows


def _nll(model: Any, row: dict[str, Any]) -> tuple[float, int]:
    """Return the loss of one row, with plain torch, and its number of labels."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.full((1, 1), model.config.decoder_start_token_id)
            logits = model(input_ids=ids, decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1)).logits
        else:
            logits = model(input_ids=ids).logits
    if type(model).__name__ in ("GPT2LMHeadModel", "LlamaForCausalLM"):
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = int((labels != -100).sum())
    return F.cross_entropy(logits[0], labels[0], reduction="sum", ignore_index=-100).item(), kept


def _gradients(trainer: transformers.Trainer) -> dict[str, Tensor]:
    """Return the gradients of the first optimizer step."""
    found: dict[str, Tensor] = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not found:
                named = kwargs["model"].named_parameters()
                found.update({name: value.grad.clone() for name, value in named if value.grad is not None})

    trainer.add_callback(Keep())
    trainer.train()
    return found


def _assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert len(one) > 10
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "batch_size"),
    often(product(KINDS, [1, 3, 8]), lambda case: case[1] == 3 or case in [("gpt2", 1), ("t5", 8)]),
)
def test_evaluation_loss_is_that_of_an_unbatched_loop(kind: str, batch_size: int, tmp_path: Path) -> None:
    model, rows = _rows(kind)
    parts = [_nll(model, row) for row in rows]
    expected = sum(nll for nll, _ in parts) / sum(count for _, count in parts)
    trainer = Trainer(model=model, args=fakes.arguments(tmp_path, per_device_eval_batch_size=batch_size))
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_evaluation_loss_of_classes(multi_label: bool, tmp_path: Path) -> None:
    model, rows = _class_rows(multi_label)
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
        target = torch.tensor([row["labels"]])
        loss = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
        losses.append(loss(logits, target).item())
    args = fakes.arguments(tmp_path, per_device_eval_batch_size=3)
    trainer = Trainer(model=model, args=args, class_weights=[1, 2, 3])
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([2, 0, 1, 0], "abc"),
        ([[2], [0], [1], [0]], "abc"),
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]] * 2, "abc"),
        ([0.5, -2.0, 1.0, 3.0], "a"),
        ([[0.5], [-2.0], [1.0], [3.0]], "a"),
    ],
    ids=["classes", "lists of a class", "several labels", "numbers", "lists of a number"],
)
def test_problem_type_is_that_of_the_labels_as_in_transformers(labels: Any, names: str, tmp_path: Path) -> None:
    results = []
    for trainer_class in (transformers.Trainer, Trainer):
        model, tokenizer = fakes.make("bert", "classification", labels=tuple(names), problem_type="regression")
        model.config.problem_type = None
        rows = [{"input_ids": tokenizer("a film").input_ids, "labels": label} for label in labels]
        args = fakes.arguments(tmp_path, per_device_train_batch_size=2, num_train_epochs=1)
        trainer = trainer_class(model=_no_dropout(model), args=args, train_dataset=rows, eval_dataset=rows)
        loss = trainer.train().training_loss
        results.append((model.config.problem_type, loss, trainer.evaluate()["eval_loss"]))
    (problem_type, *losses), ours = results
    assert ours == (problem_type, *(pytest.approx(loss, rel=1e-5) for loss in losses))


def test_evaluation_loss_is_the_likelihood_without_smoothing(tmp_path: Path) -> None:
    losses = []
    for smoothing in (0.0, 0.2):
        model, rows = _rows("gpt2")
        trainer = Trainer(model=model, args=fakes.arguments(tmp_path, label_smoothing_factor=smoothing))
        losses.append(trainer.evaluate(rows)["eval_loss"])
    assert losses[0] == losses[1]


def _all_objectives() -> list[Any]:
    cases: list[tuple[str, Any, Any]] = [(kind, {}, None) for kind in KINDS]
    cases += [(kind, {"label_smoothing_factor": 0.2}, None) for kind in KINDS]
    cases += [("class", {"label_smoothing_factor": smoothing}, weights) for smoothing, weights in CLASS_SETTINGS]
    cases += [("multi-label", {}, weights) for weights in (None, [1.0, 2.0, 5.0])]
    assert len(cases) == 16
    return often(cases, lambda case: case in [cases[place] for place in (0, 3, 6, 13, 15)])


CLASS_SETTINGS = ((0.0, None), (0.2, None), (0.0, [1.0, 2.0, 5.0]), (0.2, [1.0, 2.0, 5.0]))


@pytest.mark.parametrize(("what", "options", "weights"), _all_objectives())
def test_accumulation_equals_one_large_batch(what: str, options: Any, weights: Any, tmp_path: Path) -> None:
    gradients = []
    for size, accumulation in ((8, 1), (2, 4)):
        model, rows = _class_rows(what == "multi-label") if what in ("class", "multi-label") else _rows(what)
        args = fakes.arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            max_grad_norm=0,
            train_sampling_strategy="sequential",
            **options,
        )
        gradients.append(_gradients(Trainer(model=model, args=args, train_dataset=rows, class_weights=weights)))
    _assert_same_gradients(*gradients)


def test_logged_loss_of_accumulation_is_that_of_the_large_batch(tmp_path: Path) -> None:
    model, rows = _rows("gpt2")
    parts = [_nll(model, row) for row in rows]
    args = fakes.arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=1)
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    expected = sum(nll for nll, _ in parts) / sum(count for _, count in parts)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-5)


def _equal_lengths(kind: str) -> tuple[Any, list[dict[str, Any]]]:
    """Return rows for which the plain Trainer counts correctly: one length, and no label that cannot be predicted."""
    if kind in ("class", "multi-label"):
        model, tokenizer = fakes.make("bert", "classification", multi_label=kind == "multi-label")
    else:
        model, tokenizer = fakes.make(kind)
    encoded = tokenizer(["the king is old", "the fox is red!", "a dog is a dog.", "all law is law."]).input_ids
    width = min(len(ids) for ids in encoded)
    several = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    rows = []
    for index, ids in enumerate(encoded):
        row: dict[str, Any] = {"input_ids": ids[:width], "attention_mask": [1] * width, "labels": ids[:width]}
        if kind in ("gpt2", "llama"):
            row["labels"] = [-100, *ids[1:width]]
        elif kind in ("t5", "bart"):
            row["decoder_input_ids"] = [model.config.decoder_start_token_id, *ids[: width - 1]]
        elif kind in ("class", "multi-label"):
            row["labels"] = several[index] if kind == "multi-label" else index % 2
        rows.append(row)
    return model, rows


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_same_losses_as_the_plain_trainer_with_masks_of_padded_targets(kind: str, tmp_path: Path) -> None:
    losses = []
    for trainer_class in (transformers.Trainer, Trainer):
        model, tokenizer = fakes.make(kind)
        rows = []
        for text in ("the king is old", "the fox is red!", "a dog is a dog.", "all law is law."):
            ids = tokenizer(text).input_ids[:4]
            mask = [1] * len(ids) + [0] * (9 - len(ids))
            labels = [*ids, *[-100] * (9 - len(ids))]
            rows.append({"input_ids": ids, "attention_mask": [1] * 4, "decoder_attention_mask": mask, "labels": labels})
        args = fakes.arguments(tmp_path, per_device_train_batch_size=2, num_train_epochs=1, learning_rate=1e-3)
        trainer = trainer_class(model=model, args=args, train_dataset=rows, eval_dataset=rows)
        losses.append([trainer.evaluate()["eval_loss"], trainer.train().training_loss])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "smoothing"),
    often(
        [*product((*KINDS, "class"), (0.0, 0.1)), ("multi-label", 0.0)],
        lambda case: case in [("gpt2", 0.1), ("t5", 0.0), ("class", 0.1), ("multi-label", 0.0)],
    ),
)
def test_same_losses_as_the_plain_trainer_on_equal_lengths(kind: str, smoothing: float, tmp_path: Path) -> None:
    histories = []
    for trainer_class in (transformers.Trainer, Trainer):
        model, rows = _equal_lengths(kind)
        args = fakes.arguments(
            tmp_path,
            per_device_train_batch_size=2,
            num_train_epochs=3,
            learning_rate=1e-3,
            label_smoothing_factor=smoothing,
        )
        trainer = trainer_class(model=model, args=args, train_dataset=rows)
        trainer.train()
        histories.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(histories[0]) == 6
    assert histories[1] == pytest.approx(histories[0], abs=1e-5)


def test_a_model_outside_the_library_keeps_its_own_loss(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.linear(x).squeeze(1) - labels).pow(2).mean()}

    torch.manual_seed(0)
    rows = [{"x": [float(i), 1.0], "labels": float(i)} for i in range(8)]
    args = fakes.arguments(tmp_path, num_train_epochs=2, remove_unused_columns=False)
    trainer = Trainer(model=Own(), args=args, train_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[-2]["loss"] < trainer.state.log_history[0]["loss"]


def test_without_a_count_the_loss_is_the_mean_of_the_batch_on_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = _class_rows()
    args = fakes.arguments(tmp_path)
    ours = Trainer(model=model, args=args)
    plain = transformers.Trainer(model=model, args=args, data_collator=ours.data_collator)
    batch = ours.data_collator(rows)
    for processes in (1, 2):
        monkeypatch.setattr(Accelerator, "num_processes", processes)
        torch.testing.assert_close(ours.compute_loss(model, dict(batch)), plain.compute_loss(model, dict(batch)))


def test_without_a_count_micro_batches_are_averaged_as_in_transformers(tmp_path: Path) -> None:
    norms: dict[str, list[float]] = {}
    for name, base in (("ours", Trainer), ("plain", transformers.Trainer)):

        class Uncounted(base):  # type: ignore[valid-type,misc]
            def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> None:
                return None

        model, rows = _class_rows()
        args = fakes.arguments(
            tmp_path / name, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1
        )
        Uncounted(
            model=model, args=args, train_dataset=rows, data_collator=Collator(0), callbacks=[_Norms(norms, name)]
        ).train()
    assert norms["ours"] == pytest.approx(norms["plain"], rel=1e-4)
    assert len(norms["ours"]) == 2


class _Norms(TrainerCallback):
    """Store the norm of all gradients at each optimizer step."""

    def __init__(self, norms: dict[str, list[float]], name: str) -> None:
        self.norms = norms.setdefault(name, [])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        grads = [value.grad.norm() for value in kwargs["model"].parameters() if value.grad is not None]
        self.norms.append(float(torch.stack(grads).norm()))


def test_a_users_own_loss_function_is_called(tmp_path: Path) -> None:
    model, rows = _class_rows()
    calls = []

    def own(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        calls.append(labels.shape)
        return F.cross_entropy(outputs.logits, labels)

    args = fakes.arguments(tmp_path, num_train_epochs=1)
    Trainer(model=model, args=args, train_dataset=rows, compute_loss_func=own).train()
    assert calls == [(8,)]


def test_regression_keeps_the_models_own_loss(tmp_path: Path) -> None:
    model, tokenizer = fakes.make("bert", "classification", labels=("score",), problem_type="regression")
    rows = [{"input_ids": tokenizer("the fox").input_ids, "labels": float(i)} for i in range(4)]
    trainer = Trainer(model=model, args=fakes.arguments(tmp_path, num_train_epochs=1), train_dataset=rows)
    trainer.train()
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.tensor([rows[0]["input_ids"]])).logits.item()
    assert trainer.evaluate(rows[:1])["eval_loss"] == pytest.approx(expected**2, abs=1e-5)


def test_predictions_come_back_in_the_order_given(tmp_path: Path) -> None:
    model, rows = _class_rows()
    args = fakes.arguments(tmp_path, train_sampling_strategy="group_by_length", per_device_eval_batch_size=2)
    output = Trainer(model=model, args=args).predict(rows)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    torch.testing.assert_close(torch.tensor(output.predictions), torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert output.label_ids.tolist() == [row["labels"] for row in rows]


def test_predict_returns_logits_of_tokens_with_the_loss(tmp_path: Path) -> None:
    model, rows = _rows("gpt2")
    output = Trainer(model=model, args=fakes.arguments(tmp_path, per_device_eval_batch_size=3)).predict(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    assert output.predictions.shape == (len(rows), longest, model.config.vocab_size)
    assert math.isfinite(output.metrics["test_loss"])


def test_a_batch_without_any_label_is_refused_with_its_rows(tmp_path: Path) -> None:
    model, rows = _rows("gpt2")
    for row in rows:
        row["labels"] = [-100] * len(row["labels"])
    rows[0]["row_id"] = "tales:1"
    trainer = Trainer(model=model, args=fakes.arguments(tmp_path, num_train_epochs=1), train_dataset=rows)
    with pytest.raises(DataError, match=r"no position of this batch has a label \(step 1, rows .*tales:1"):
        trainer.train()


def test_a_micro_batch_without_labels_adds_nothing(tmp_path: Path) -> None:
    gradients = []
    for masked in (False, True):
        model, rows = _rows("gpt2", TEXTS[:4])
        for row in rows[2:]:
            row["labels"] = [-100] * len(row["labels"])
        used = rows if masked else rows[:2]
        args = fakes.arguments(
            tmp_path,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=len(used) // 2,
            num_train_epochs=1,
            max_grad_norm=0,
            train_sampling_strategy="sequential",
        )
        gradients.append(_gradients(Trainer(model=model, args=args, train_dataset=used)))
    _assert_same_gradients(*gradients)


def test_an_evaluation_without_any_label_is_not_zero(tmp_path: Path) -> None:
    model, rows = _rows("gpt2")
    for row in rows:
        row["labels"] = [-100] * len(row["labels"])
    assert math.isnan(Trainer(model=model, args=fakes.arguments(tmp_path)).evaluate(rows)["eval_loss"])


def test_class_weights_need_classes_and_one_each(tmp_path: Path) -> None:
    args = fakes.arguments(tmp_path)
    with pytest.raises(ConfigError, match="class weights for GPT2LMHeadModel"):
        Trainer(model=fakes.gpt2()[0], args=args, class_weights=[1.0, 2.0])
    with pytest.raises(ConfigError, match="2 class weights; expected 3, one per class"):
        Trainer(model=_class_rows()[0], args=args, class_weights=[1.0, 2.0])


def test_a_metric_that_no_evaluation_returns_fails_before_the_first_step(tmp_path: Path) -> None:
    model, rows = _rows("gpt2")
    args = fakes.arguments(
        tmp_path,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_los",
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
    with pytest.raises(ConfigError, match="Did you mean 'eval_loss'"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_best_checkpoint_is_chosen_by_the_true_loss(tmp_path: Path) -> None:
    model, rows = _rows("gpt2")
    args = fakes.arguments(
        tmp_path,
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=1e-3,
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == pytest.approx(min(losses), abs=1e-9)
