"""What a script changes in its model, in the losses of transformers or in the width of its rows keeps its effect."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import torch.nn.functional as F
import transformers
from matrix import often
from transformers.loss import loss_utils

from fulltune import Trainer
from fulltune.training.loss_check import check_loss
from fulltune.training.untouched import changed_in_model, hooked

TEXTS = ["a short one", "a text that is somewhat longer", "tiny", "the last"]
WIDTH = 40


def padded(head: str) -> list[dict[str, Any]]:
    """Return rows that a script has padded to one length."""
    tokenizer = fakes.gpt2_tokenizer() if head == "lm" else fakes.bert_tokenizer()
    rows = []
    for number, text in enumerate(TEXTS):
        row = dict(tokenizer(text, padding="max_length", max_length=WIDTH))
        ids = [token if seen else -100 for token, seen in zip(row["input_ids"], row["attention_mask"], strict=True)]
        rows.append(row | {"labels": ids if head == "lm" else number % 2})
    return rows


def history(base: Any, model: Any, head: str, folder: Path) -> list[float]:
    args = fakes.arguments(
        folder, per_device_train_batch_size=2, num_train_epochs=2, eval_strategy="epoch", learning_rate=1e-3
    )
    collator = transformers.default_data_collator
    data = {"train_dataset": padded(head), "eval_dataset": padded(head)}
    trainer = base(model=model, args=args, data_collator=collator, **data)
    trainer.train()
    return [entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_loss") if name in entry]


def classifier() -> Any:
    return fakes.make("bert", "classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)[0]


def flip(module: Any, args: Any, named: dict[str, Any]) -> Any:
    return args, named | {"labels": 1 - named["labels"]}


def penalize(module: Any, args: Any, outputs: Any) -> Any:
    if outputs.loss is not None:
        outputs.loss = outputs.loss + outputs.logits.pow(2).mean() + 1
    return outputs


class Doubles:
    def __call__(self, module: Any, args: Any, outputs: Any) -> Any:
        outputs["loss"] = outputs["loss"] * 2
        return outputs


def observe(module: Any, args: Any, outputs: Any) -> None:
    """Read outputs only, as trackers do."""


HOOKS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "before": ("flip", lambda model: model.register_forward_pre_hook(flip, with_kwargs=True)),
    "after": ("penalize", lambda model: model.register_forward_hook(penalize)),
    "object": ("Doubles", lambda model: model.register_forward_hook(Doubles())),
    "partial": ("penalize", lambda model: model.register_forward_hook(functools.partial(penalize))),
    "decorated": ("penalize", lambda model: model.register_forward_hook(torch.enable_grad()(penalize))),
    "observer": ("observe", lambda model: model.register_forward_hook(observe)),
}


@pytest.mark.parametrize("name", often(HOOKS, lambda name: name in ("before", "partial", "observer")))
def test_hooks_on_a_model_see_labels_and_loss(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    histories = []
    for base in (transformers.Trainer, Trainer):
        model = classifier()
        hook, register = HOOKS[name]
        register(model)
        with caplog.at_level("INFO", logger="fulltune"):
            histories.append(history(base, model, "classification", tmp_path))
    assert len(histories[0]) == 6
    assert histories[1] == pytest.approx(histories[0], abs=1e-5)
    reason = f"BertForSequenceClassification has the hook {__name__}.{hook}, which may change its outputs"
    assert caplog.messages.count(f"left to transformers: the loss ({reason})") == 1


def test_a_hook_for_all_modules_sees_labels_and_loss(tmp_path: Path) -> None:
    def double(module: Any, args: Any, outputs: Any) -> Any:
        return Doubles()(module, args, outputs) if isinstance(outputs, dict) and "loss" in outputs else outputs

    handle = torch.nn.modules.module.register_module_forward_hook(double)
    try:
        plain, ours = (
            history(base, classifier(), "classification", tmp_path) for base in (transformers.Trainer, Trainer)
        )
    finally:
        handle.remove()
    assert ours == pytest.approx(plain, abs=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_hook_on_an_adapter_keeps_the_loss_of_the_library(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def made() -> Any:
        torch.manual_seed(0)
        return peft.get_peft_model(classifier(), peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))

    histories = []
    for base in (transformers.Trainer, Trainer):
        model = made()
        model.base_model.register_forward_hook(Doubles())
        histories.append(history(base, model, "classification", tmp_path))
    assert histories[1] == pytest.approx(histories[0], abs=1e-5)
    model = made()
    assert hooked((model, *model.modules())) is None  # PEFT's own hooks do not count


def test_a_hook_on_a_part_of_a_model_sees_the_rows_as_the_script_padded_them(tmp_path: Path) -> None:
    seen = dict[Any, list[torch.Size]]()
    for base in (transformers.Trainer, Trainer):
        model = classifier()
        shapes = seen.setdefault(base, [])
        model.bert.encoder.register_forward_hook(
            lambda module, args, outputs, shapes=shapes: shapes.append(args[0].shape)
        )
        history(base, model, "classification", tmp_path)
    plain, ours = seen.values()
    assert {shape[1] for shape in plain} == {WIDTH}
    assert {shape[1] for shape in ours if shape[1] > 8} >= {WIDTH}
    assert ours[-4:] == plain[-4:]


def test_a_hook_that_reads_logits_of_the_head_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.models.head_loss.MIN_BYTES", 1)
    shapes = []
    model = fakes.gpt2()[0]
    model.lm_head.register_forward_hook(lambda module, args, logits: shapes.append(logits.dim()))
    history(Trainer, model, "lm", tmp_path)
    assert set(shapes) == {3}


# ---- Losses that the library looks up ----


def squares(logits: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
    return logits.pow(2).mean()


class Focal(torch.nn.CrossEntropyLoss):
    def forward(self, logits: Any, labels: Any) -> Any:
        return 3 * F.cross_entropy(logits, labels)


@pytest.mark.parametrize("entry", ["entry", "compiled-like", "part"])
def test_a_replaced_loss_of_the_library_is_trained_and_evaluated(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if entry == "part":
        monkeypatch.setattr(loss_utils, "fixed_cross_entropy", squares)
    else:
        loss = squares if entry == "entry" else torch.enable_grad()(squares)
        monkeypatch.setitem(loss_utils.LOSS_MAPPING, "ForCausalLM", loss)
    plain, ours = (
        history(base, fakes.gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)[0], "lm", tmp_path)
        for base in (transformers.Trainer, Trainer)
    )
    assert ours == pytest.approx(plain, abs=1e-5)


def test_a_replaced_loss_of_torch_is_trained_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.models.bert.modeling_bert.CrossEntropyLoss", Focal)
    plain, ours = (history(base, classifier(), "classification", tmp_path) for base in (transformers.Trainer, Trainer))
    assert plain[0] > 1.5
    assert ours == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_models_as_loaded_are_unchanged(kind: str) -> None:
    for head in ("lm", "classification"):
        model, _ = fakes.make(kind, head)
        assert changed_in_model(model) is None
        assert hooked(model.modules()) is None


# ---- Half precision ----


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5", "bart"])
def test_losses_in_half_precision_are_recognized(kind: str, dtype: torch.dtype) -> None:
    classes = fakes.make(kind, "classification")[0].to(dtype)
    assert check_loss(classes, "class").is_cross_entropy
    tokens = {"gpt2": "causal", "bert": "token"}.get(kind, "seq2seq")
    assert check_loss(fakes.make(kind)[0].to(dtype), tokens).is_cross_entropy


def test_a_multiple_of_the_loss_is_recognized_in_half_precision() -> None:
    model = fakes.make("bert", "classification")[0].to(torch.bfloat16)
    forward = model.forward

    def scaled(labels: Any = None, **named: Any) -> Any:
        outputs = forward(labels=labels, **named)
        if labels is not None:
            outputs["loss"] = outputs.loss * 1.1
        return outputs

    model.forward = scaled
    assert not check_loss(model, "class").is_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_token_classes_of_trimmed_rows_are_trained(dtype: torch.dtype, tmp_path: Path) -> None:
    model, tokenizer = fakes.bert()
    torch.manual_seed(0)
    tagger = transformers.BertForTokenClassification(model.config).to(dtype)
    rows = [
        row | {"labels": [1 if seen else -100 for seen in row["attention_mask"]]} for row in padded("classification")
    ]
    args = fakes.arguments(tmp_path, per_device_train_batch_size=4, max_steps=1)
    trainer = Trainer(model=tagger, args=args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["labels"].shape[1] < WIDTH
    assert all(value.is_contiguous() for value in batch.values())
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] > 0


# ---- Widths of what compute_metrics gets ----


def test_metrics_get_predictions_of_the_width_of_the_collator(tmp_path: Path) -> None:
    widths = {}

    def measure(base: Any) -> dict[str, float]:
        def compute(prediction: Any) -> dict[str, float]:
            widths[base] = [part.shape for part in (prediction.predictions, prediction.label_ids, prediction.inputs)]
            return {"sum": float(prediction.label_ids.sum() + prediction.inputs.sum())}

        args = fakes.arguments(tmp_path, per_device_eval_batch_size=2, include_for_metrics=["inputs"])
        trainer = base(
            model=fakes.gpt2()[0],
            args=args,
            eval_dataset=padded("lm"),
            data_collator=transformers.default_data_collator,
            compute_metrics=compute,
        )
        return {"sum": trainer.evaluate()["eval_sum"]}

    assert measure(Trainer) == measure(transformers.Trainer)
    assert widths[Trainer] == widths[transformers.Trainer]
