"""Models that pad, shift or compute their loss in a special way, against plain torch loops."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import torch.nn.functional as F
import transformers
from matrix import often
from torch import Tensor
from transformers import TrainerCallback

from fulltune import Config, ModelError, Trainer
from fulltune.tasks.base import Features
from fulltune.training.batches import packing
from fulltune.training.loss_check import LossCheck, check_loss
from fulltune.training.next_tokens import aligned_labels

PAD = 1
END = 2
VOCABULARY = 60
LENGTHS = (9, 14, 5, 11, 20, 7)

_IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 0}
_DECODER = {
    **_IDS, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
_STACKS = {
    **_IDS, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "dropout": 0.0,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": END,
    "activation_dropout": 0.0, "attention_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
}  # fmt: skip
_T5 = {
    **_IDS, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}  # fmt: skip


def mixtral(head: str = "CausalLM", **options: Any) -> Any:
    routed = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.1}
    return built("Mixtral", head, **_DECODER | routed | options)


def built(name: str, head: str, **options: Any) -> Any:
    """Return a model of transformers with wide random weights, the same each time, without dropout."""
    classes = {} if head != "SequenceClassification" else {"num_labels": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**options | classes)
        model = getattr(transformers, name + (head if head == "LMHeadModel" else f"For{head}"))(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model.eval()


def rows(head: str) -> list[dict[str, Any]]:
    """Return rows of unequal lengths that end with the end token, with labels for a head."""
    random = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate(LENGTHS):
        ids = [*torch.randint(5, VOCABULARY, (length - 1,), generator=random).tolist(), END]
        target = [*torch.randint(5, VOCABULARY, (LENGTHS[-1 - number] // 2,), generator=random).tolist(), END]
        labels: Any = {"SequenceClassification": number % 3, "ConditionalGeneration": target}.get(head, ids)
        found.append({"input_ids": ids, "labels": labels})
    return found


def alone(model: Any, data: list[dict[str, Any]], shifted: bool = False) -> Tensor:
    """Return the sum of the losses over the number of labels, row by row without padding."""
    losses, count = [], 0
    for row in data:
        labels = torch.tensor([row["labels"]])
        inputs: dict[str, Any] = {"input_ids": torch.tensor([row["input_ids"]])}
        if model.config.is_encoder_decoder and labels.dim() > 1:
            start = torch.full((1, 1), model.config.decoder_start_token_id)
            inputs["decoder_input_ids"] = torch.cat([start, labels[:, :-1]], dim=1)
            inputs["use_cache"] = False  # FSMT hides later tokens only without a cache
        logits = model(**inputs).logits
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses.append(F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum"))
        count += labels.numel()
    return torch.stack(losses).sum() / count


def step(model: Any, data: list[dict[str, Any]], folder: Path, batch: int = 6, **options: Any) -> tuple[float, Any]:
    """Return the loss of one optimizer step over all rows, and the gradients that it used."""
    gradients = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            named = kwargs["model"].named_parameters()
            gradients.update({name: value.grad.clone() for name, value in named if value.grad is not None})

    args = fakes.arguments(
        folder, max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=6 // batch,
        max_grad_norm=0.0, learning_rate=0.0, **options.pop("args", {}),
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[Keep()], **options)
    trainer.train()
    return trainer.state.log_history[0]["loss"], gradients


CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "Blenderbot": ("ConditionalGeneration", lambda: built("Blenderbot", "ConditionalGeneration", **_STACKS)),
    "M2M100": ("ConditionalGeneration", lambda: built("M2M100", "ConditionalGeneration", **_STACKS)),
    "FSMT": (
        "ConditionalGeneration",
        lambda: built(
            "FSMT",
            "ConditionalGeneration",
            **_STACKS | {"langs": ["en", "de"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
        ),
    ),
    "FNet": (
        "SequenceClassification",
        lambda: built(
            "FNet",
            "SequenceClassification",
            **_DECODER | {"hidden_dropout_prob": 0.0},
        ),
    ),
    "FNet of words": ("MaskedLM", lambda: built("FNet", "MaskedLM", **_DECODER | {"hidden_dropout_prob": 0.0})),
    "XLNet": (
        "SequenceClassification",
        lambda: built(
            "XLNet", "SequenceClassification", **_IDS, d_model=32, n_layer=2, n_head=2, d_inner=32, dropout=0.0,
            summary_last_dropout=0.0,
        ),
    ),
    "T5": ("SequenceClassification", lambda: built("T5", "SequenceClassification", **_T5, classifier_dropout=0.0)),
    "Mixtral": ("SequenceClassification", lambda: mixtral("SequenceClassification")),
}  # fmt: skip


@pytest.mark.parametrize("name", often(CASES, lambda name: name in ("Blenderbot", "XLNet", "FNet of words", "Mixtral")))
def test_a_step_is_that_of_rows_alone(name: str, tmp_path: Path) -> None:
    head, make = CASES[name]
    data = rows(head)
    reference = make().train()
    expected = alone(reference, data)
    expected.backward()
    for batch, options in ((6, {}), (2, {}), (6, {"unpad": True})):
        loss, gradients = step(make(), data, tmp_path, batch, **options)
        assert loss == pytest.approx(expected.item(), abs=1e-4)
        assert len(gradients) > 5
        for key, gradient in gradients.items():
            wanted = reference.get_parameter(key).grad
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_evaluation_loss_is_that_of_rows_alone(name: str, tmp_path: Path) -> None:
    head, make = CASES[name]
    data, model = rows(head), make()
    args = fakes.arguments(tmp_path, per_device_eval_batch_size=4, prediction_loss_only=head == "MaskedLM")
    trainer = Trainer(model=model, args=args, eval_dataset=data)
    with torch.no_grad():
        expected = alone(model.eval(), data).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_predictions_of_groups_come_back_in_the_order_given(tmp_path: Path) -> None:
    data, model = rows("SequenceClassification"), CASES["FNet"][1]()
    trainer = Trainer(model=model, args=fakes.arguments(tmp_path, per_device_eval_batch_size=6))
    found = trainer.predict(data).predictions
    with torch.no_grad():
        expected = [model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in data]
    torch.testing.assert_close(torch.tensor(found), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_the_loss_of_routers_is_trained_once_and_not_evaluated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = rows("CausalLM")
    reference = mixtral().train()
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in data], True, PAD)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)

    def losses(batch: int) -> Tensor:
        """Return the losses of transformers, each as often as its batch has labels."""
        parts = [slice(start, start + batch) for start in range(0, 6, batch)]
        found = [reference(input_ids=ids[part], attention_mask=mask[part], labels=labels[part]).loss for part in parts]
        counts = [(labels[part, 1:] != -100).sum() for part in parts]
        return sum((loss * count for loss, count in zip(found, counts, strict=True)), torch.zeros(())) / sum(counts)

    order = {6: 6, 2: 2}
    for batch in order:
        found, gradients = step(mixtral(), data, tmp_path, batch, args={"train_sampling_strategy": "sequential"})
        reference.zero_grad()
        expected = losses(batch)
        expected.backward()
        assert found == pytest.approx(expected.item(), abs=1e-4)
        router = "model.layers.0.mlp.gate.weight"
        torch.testing.assert_close(gradients[router], reference.get_parameter(router).grad, rtol=1e-3, atol=1e-6)
    assert "MixtralForCausalLM computes its own loss" in caplog.text
    with torch.no_grad():
        cross_entropy = alone(reference.eval(), data, shifted=True).item()
    trainer = Trainer(model=reference, args=fakes.arguments(tmp_path), eval_dataset=data)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(cross_entropy, abs=1e-5)
    assert losses(6).item() > cross_entropy + 0.01


def test_smoothing_leaves_the_loss_of_routers_as_it_is(tmp_path: Path) -> None:
    data = rows("CausalLM")
    plain = mixtral()
    smooth = {"label_smoothing_factor": 0.2}
    router_loss = step(mixtral(), data, tmp_path)[0] - alone(plain, data, shifted=True).item()
    unrouted = mixtral(output_router_logits=False)
    expected = step(unrouted, data, tmp_path, args=smooth)[0] + router_loss
    assert step(mixtral(), data, tmp_path, args=smooth)[0] == pytest.approx(expected, abs=1e-4)


def test_a_model_that_predicts_several_tokens_is_trained_on_all_of_them(tmp_path: Path) -> None:
    def make() -> Any:
        return built(
            "ProphetNet", "ConditionalGeneration", **_IDS, hidden_size=32, encoder_ffn_dim=32, decoder_ffn_dim=32,
            num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=2, num_decoder_attention_heads=2,
            decoder_start_token_id=0, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, ngram=2,
        )  # fmt: skip

    data, model = rows("ConditionalGeneration"), make()
    losses, count = 0.0, 0
    with torch.no_grad():
        for row in data:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            losses += model(input_ids=ids, labels=labels).loss.item() * labels.numel()
            count += labels.numel()
    for batch in (6, 2):
        assert step(make(), data, tmp_path, batch)[0] == pytest.approx(losses / count, abs=1e-4)
    assert check_loss(model, "seq2seq") == LossCheck("seq2seq", is_cross_entropy=False)


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_rows_may_have_different_numbers_of_end_tokens(name: str, tmp_path: Path) -> None:
    data = rows("SequenceClassification")
    data[1]["input_ids"][3] = data[4]["input_ids"][2] = data[4]["input_ids"][5] = END

    def make() -> Any:
        return built(name, "SequenceClassification", **(_T5 if name == "T5" else _STACKS))

    expected = alone(make(), data).item()
    assert step(make(), data, tmp_path)[0] == pytest.approx(expected, abs=1e-4)


def test_a_classifier_without_a_padding_token_takes_several_rows(tmp_path: Path) -> None:
    data, options = rows("SequenceClassification"), _DECODER | {"pad_token_id": None}
    for length in (None, 5):
        cut = [row | {"input_ids": row["input_ids"][:length]} for row in data]
        expected = alone(built("Llama", "SequenceClassification", **options), cut).item()
        found, _ = step(built("Llama", "SequenceClassification", **options), cut, tmp_path)
        assert found == pytest.approx(expected, abs=1e-4)


def test_labels_that_a_forward_pass_does_not_name_reach_the_model(tmp_path: Path) -> None:
    text = _DECODER | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": 32}
    options = {"text_config": text, "vision_config": sight, "pad_token_id": 0}
    model, data = built("Qwen3_5", "SequenceClassification", **options), rows("SequenceClassification")
    assert "labels" not in inspect.signature(model.forward).parameters
    expected = alone(model, data).item()
    assert step(model, data, tmp_path)[0] == pytest.approx(expected, abs=1e-4)
    trainer = Trainer(
        model=built("Qwen3_5", "SequenceClassification", **options),
        args=fakes.arguments(tmp_path),
        eval_dataset=data,
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_accumulated_regression_equals_one_large_batch(tmp_path: Path) -> None:
    def make() -> Any:
        return built("Llama", "SequenceClassification", **_DECODER | {"problem_type": "regression"})

    data = [row | {"labels": [0.5, 1.0, float(number)]} for number, row in enumerate(rows("SequenceClassification"))]
    whole, parts = (step(make(), data, tmp_path, batch) for batch in (6, 2))
    assert parts[0] == pytest.approx(whole[0], abs=1e-4)
    torch.testing.assert_close(parts[1]["score.weight"], whole[1]["score.weight"], rtol=1e-4, atol=1e-5)


def test_the_claims_of_a_class_are_checked() -> None:
    def facts(model: Any, kind: Any) -> tuple[Any, bool]:
        found = check_loss(model, kind)
        return found.kind, found.is_cross_entropy

    assert facts(built("Llama", "CausalLM", **_DECODER), "causal") == ("causal", True)
    assert facts(mixtral(), "causal") == ("causal", False)
    # Decoders cut from encoder-decoders take labels that are already shifted.
    assert facts(built("Bart", "CausalLM", **_STACKS), "causal") == ("token", True)
    assert facts(fakes.bert()[0], "token") == ("token", True)
    assert facts(fakes.t5()[0], "seq2seq") == ("seq2seq", True)
    model, _ = fakes.make("bert", "classification", multi_label=True)
    assert facts(model, "multi-label") == ("multi-label", True)
    assert facts(built("Bert", "TokenClassification", **_DECODER), "token") == ("token", True)


def test_labels_are_shifted_where_the_loss_does_not_shift() -> None:
    rows = [Features([5, 6, 7, 8], [-100, 6, 7, 8], "a"), Features([9, 3], [9, 3], "b")]
    bundle = replace(fakes.bundle("gpt2"), model=built("Bart", "CausalLM", **_STACKS))
    moved = aligned_labels(bundle, rows)
    assert [one.labels for one in moved] == [[6, 7, 8, -100], [3, -100]]
    assert [one.input_ids for one in moved] == [one.input_ids for one in rows]
    for kind in ("gpt2", "t5"):
        assert aligned_labels(fakes.bundle(kind), rows) is rows


def test_a_decoder_that_reads_in_both_directions_is_refused() -> None:
    model = built("XLNet", "LMHeadModel", **_IDS, d_model=32, n_layer=1, n_head=2, d_inner=32)
    bundle = replace(fakes.bundle("gpt2"), model=model)
    with pytest.raises(ModelError, match=r"XLNetLMHeadModel.* attends to later tokens"):
        aligned_labels(bundle, [Features([5, 6], [5, 6], "a")])


def test_a_check_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    model = built("Llama", "CausalLM", **_DECODER).train()
    model.model.layers[0].eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        check_loss(model, "causal")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not caplog.records


def test_a_model_that_cannot_be_checked_keeps_its_own_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Any:
        model = built("Llama", "SequenceClassification", **_DECODER)
        forward = model.forward

        def demanding(layout: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
            return {"loss": forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss}

        model.forward = demanding
        return model

    facts = check_loss(make(), "class")
    assert (facts.kind, facts.is_cross_entropy, facts.is_checked) == ("class", False, False)
    assert "LlamaForSequenceClassification computes its own loss, which cannot be checked: TypeError" in caplog.text
    data = rows("SequenceClassification")
    expected = alone(built("Llama", "SequenceClassification", **_DECODER), data).item()
    with_layout = [row | {"layout": 1} for row in data]
    for batch in (6, 2):
        assert step(make(), with_layout, tmp_path, batch)[0] == pytest.approx(expected, abs=1e-4)
    args = fakes.arguments(tmp_path, per_device_eval_batch_size=4, prediction_loss_only=True)
    found = Trainer(model=make(), args=args, eval_dataset=with_layout).evaluate()["eval_loss"]
    assert found == pytest.approx(expected, abs=1e-5)


def test_models_with_a_loss_of_their_own_do_not_pack() -> None:
    config = Config.model_validate({"model": "x", "task": "causal-lm", "data": {"train": "x"}})
    assert packing.packs(mixtral(output_router_logits=False), config)
    assert not packing.packs(mixtral(), config)
