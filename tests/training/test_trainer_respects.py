"""Anything that a user sees, sets or overrides stays under the user's control."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import fakes
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import fulltune
from fulltune import ConfigError, DataError, Seq2SeqTrainer, Trainer
from fulltune.errors import RowError

TEXTS = ["a short one", "a text that is somewhat longer", "tiny", "the last"]


def rows() -> list[dict[str, Any]]:
    _, tokenizer = fakes.gpt2()
    return [{"input_ids": (ids := tokenizer(text).input_ids), "labels": ids} for text in TEXTS]


def labeled() -> list[dict[str, Any]]:
    _, tokenizer = fakes.bert()
    return [dict(tokenizer(text)) | {"labels": number % 2} for number, text in enumerate(TEXTS)]


def arguments(folder: Path, **options: Any) -> Any:
    standard = {"per_device_train_batch_size": 2, "max_steps": 2, "train_sampling_strategy": "sequential"}
    return fakes.arguments(folder, **(standard | options))


def built(base: Any, folder: Path, **options: Any) -> Any:
    passed = {name: options.pop(name) for name in ("callbacks", "data_collator", "eval_dataset") if name in options}
    return base(model=fakes.gpt2()[0], args=arguments(folder, **options), train_dataset=rows(), **passed)


# ---- What a user sees ----


class Sees(transformers.TrainerCallback):
    """Iterate over the loader, as callbacks that log samples do."""

    def __init__(self) -> None:
        self.columns: set[str] = set()

    def on_step_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        for batch in train_dataloader:
            self.columns |= set(batch)


@pytest.mark.parametrize("as_table", [False, True])
def test_loaders_have_the_columns_of_the_library(as_table: bool, tmp_path: Path) -> None:
    sees = Sees()
    trainer = built(Trainer, tmp_path, callbacks=[sees])
    if as_table:
        trainer.train_dataset = datasets.Dataset.from_list(rows())
    trainer.train()
    assert sees.columns == {"input_ids", "labels", "attention_mask"}
    loader = trainer.get_train_dataloader()
    assert type(loader.dataset) is type(trainer.train_dataset)
    assert set(loader.dataset[0]) == {"input_ids", "labels"}


def test_rows_are_named_although_loaders_have_no_row_numbers(tmp_path: Path) -> None:
    class Breaks(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 1:
                model.get_input_embeddings().weight.data.fill_(torch.nan)

    with pytest.raises(fulltune.NonFiniteError) as caught:
        built(Trainer, tmp_path, callbacks=[Breaks()]).train()
    assert caught.value.row_ids == ("2", "3")


# ---- What a user sets ----


def test_attributes_of_a_subclass_do_not_collide(tmp_path: Path) -> None:
    class Own(Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.padding = "max_length"
            self.checkpoints = []
            self.micro_batches = 3
            self.trained_only = "head"
            self._logged = self._facts = self._evaluated = self._trial = self._unpad = None

    trainer = built(Own, tmp_path, include_num_input_tokens_seen="all", save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.padding == "max_length"


def test_the_only_attribute_added_is_private_and_prefixed(tmp_path: Path) -> None:
    plain, ours = (vars(built(base, tmp_path)) for base in (transformers.Trainer, Trainer))
    assert set(ours) - set(plain) == {"_fulltune"}


def test_training_arguments_are_not_written_to(tmp_path: Path) -> None:
    plain, ours = arguments(tmp_path), arguments(tmp_path)
    for base, args in ((transformers.Trainer, plain), (Trainer, ours)):
        collator = transformers.DataCollatorForSeq2Seq(fakes.gpt2()[1])
        base(model=fakes.gpt2()[0], args=args, train_dataset=rows(), data_collator=collator).train()
    assert ours.to_dict() == plain.to_dict()


@pytest.mark.parametrize("options", [{"class_weights": [1.0, 2.0]}, {"r_drop": 1.0}])
def test_settings_of_our_loss_are_refused_alongside_another(options: dict[str, Any], tmp_path: Path) -> None:
    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    with pytest.raises(ValueError, match="compute_loss is overridden") as caught:
        Own(model=fakes.make("bert", "classification")[0], args=arguments(tmp_path), train_dataset=labeled(), **options)
    assert isinstance(caught.value, ConfigError)
    with pytest.raises(ValueError, match="compute_loss_func is given"):
        Trainer(
            fakes.make("bert", "classification")[0],
            arguments(tmp_path),
            train_dataset=labeled(),
            compute_loss_func=lambda outputs, labels, **kwargs: outputs.logits.sum(),
            **options,
        )


def test_a_loss_replaced_after_construction_is_refused_too(tmp_path: Path) -> None:
    model = fakes.make("bert", "classification")[0]
    trainer = Trainer(model, arguments(tmp_path), train_dataset=labeled(), class_weights=[1.0, 2.0])
    model.loss_function = lambda *args, **kwargs: torch.zeros(())
    with pytest.raises(ValueError, match="class_weights is set, and the loss function of"):
        trainer.train()


# ---- Errors that scripts catch ----


def test_an_unknown_metric_is_the_error_that_the_library_raises(tmp_path: Path) -> None:
    trainer = built(
        Trainer,
        tmp_path,
        eval_dataset=rows(),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="bleu",
    )
    with pytest.raises(KeyError) as caught:
        trainer.train()
    assert isinstance(caught.value, (ConfigError, ValueError))
    assert str(caught.value).startswith("field 'metric_for_best_model': ")


def test_rows_that_a_model_refuses_are_a_value_error(tmp_path: Path) -> None:
    model = fakes.make("bart", "classification")[0]
    texts = [[7, 8, model.config.eos_token_id], [7, 8, 9]]
    data = [{"input_ids": ids, "labels": 0} for ids in texts]
    with pytest.raises(ValueError, match="end token") as caught:
        Trainer(model, arguments(tmp_path), train_dataset=data).train()
    assert isinstance(caught.value, (RowError, DataError))


# ---- What a user overrides ----


def calling(names: tuple[str, ...], base: Any) -> Any:
    """Derive a class that counts the calls of some overridden methods by name."""

    def counted(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            vars(self).setdefault("calls", Counter())[name] += 1
            return getattr(super(own, self), name)(*args, **kwargs)

        return method

    own = type("Own", (base,), {name: counted(name) for name in names})
    return own


HOOKS = (
    ("training_step", "create_optimizer", "create_scheduler", "_run_epoch", "_inner_training_loop", "_save_checkpoint"),
    ("get_train_dataloader", "get_eval_dataloader", "_get_dataloader", "_get_train_sampler", "_get_eval_sampler"),
    ("_get_collator_with_removed_columns", "_remove_unused_columns", "get_batch_samples", "_get_num_items_in_batch"),
    ("evaluation_loop", "prediction_step", "evaluate", "log", "_prepare_inputs", "compute_loss"),
)


@pytest.mark.parametrize("names", HOOKS)
def test_overridden_methods_are_called_as_often_as_by_the_library(names: tuple[str, ...], tmp_path: Path) -> None:
    counts = []
    for base in (transformers.Trainer, Trainer):
        collator = transformers.DataCollatorForTokenClassification(fakes.gpt2()[1])
        trainer = built(
            calling(names, base),
            tmp_path / base.__module__,
            eval_dataset=rows(),
            data_collator=collator,
            eval_strategy="steps",
            eval_steps=1,
            logging_steps=1,
            save_strategy="steps",
            save_steps=1,
        )
        trainer.train_dataset = datasets.Dataset.from_list(rows())
        trainer.train()
        counts.append(trainer.calls)
    assert counts[0] == counts[1]
    assert set(counts[0]) == set(names)


def test_inputs_that_a_user_prepares_are_neither_trimmed_nor_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    widths, sizes = [], []

    class Own(Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            prepared = super()._prepare_inputs(inputs)
            widths.append(prepared["input_ids"].shape[1])
            sizes.append(len(prepared["input_ids"]))
            return prepared

    def wide(items: list[Any]) -> Any:
        return transformers.default_data_collator(
            [
                {name: [*ids, *[0 if name == "input_ids" else -100] * (64 - len(ids))] for name, ids in item.items()}
                for item in items
            ]
        ) | {"attention_mask": torch.ones(len(items), 64, dtype=torch.long)}

    with caplog.at_level("INFO", logger="fulltune"):
        built(Own, tmp_path, data_collator=wide).train()
    assert (set(widths), set(sizes)) == ({64}, {2})
    text = caplog.text
    assert (
        "left to transformers: training a batch in parts where memory runs out (_prepare_inputs is overridden)" in text
    )
    assert "left to transformers: cutting columns of padding (wide decides on the padding)" in text


def test_rows_that_a_script_padded_stay_as_wide_for_a_model_that_depends_on_the_width(tmp_path: Path) -> None:
    """A run computes such rows alone (tests/benchmarks/test_architectures.py); a script decides on its own padding."""
    config = transformers.BigBirdConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, block_size=4, num_random_blocks=1, pad_token_id=0, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.3,
    )  # fmt: skip
    padded = [
        {
            "input_ids": [*range(5, 5 + length), *[0] * (64 - length)],
            "attention_mask": [1] * length + [0] * (64 - length),
            "labels": length % 2,
        }
        for length in (9, 40, 52, 33)
    ]
    losses = []
    for base in (transformers.Trainer, Trainer):
        torch.manual_seed(1)
        model = transformers.BigBirdForSequenceClassification(config)
        trainer = base(model=model, args=arguments(tmp_path / base.__module__), train_dataset=padded)
        losses.append(trainer.train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_out_of_memory_in_a_users_loss_is_left_to_the_user(tmp_path: Path) -> None:
    seen = []

    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            seen.append(len(inputs["input_ids"]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(torch.OutOfMemoryError):
        built(Own, tmp_path).train()
    assert seen == [2], "a mean over the batch is not the sum of the means of its parts"


# ---- Models, collators and imports of the user ----


def peft_model() -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    return peft.get_peft_model(fakes.gpt2()[0], config)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's
def test_checkpoints_of_adapters_hold_the_adapter_and_the_best_is_loaded(tmp_path: Path) -> None:
    args = arguments(
        tmp_path,
        learning_rate=1e6,  # the first evaluation is the best
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
    )
    trainer = Trainer(peft_model(), args, train_dataset=rows(), eval_dataset=rows())
    trainer.train()
    for step in (1, 2):
        assert (tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors").exists()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-4)


class Growing(nn.Module):
    """A memory bank whose buffer changes its shape after each step, and which computes its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("bank", torch.zeros(1))

    def forward(self, x: Any = None, labels: Any = None) -> dict[str, Any]:
        predicted = self.layer(x[:, None])[:, 0]
        if self.training:
            self.bank = torch.cat([self.bank, predicted.detach()])
        return {"loss": ((predicted - labels) ** 2).mean(), "logits": predicted}


def test_a_buffer_may_grow_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    data = [{"x": float(number), "labels": 1.0} for number in range(4)]
    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    trainer = Trainer(Growing(), args, train_dataset=data)
    trainer.train()
    assert len(trainer.model.bank) == 5
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert len(weights["bank"]) == 5


def test_a_collator_with_a_tokenizer_of_its_own_pads_with_it(tmp_path: Path) -> None:
    mine, other = fakes.gpt2()[1], fakes.gpt2()[1]
    mine.pad_token_id = 5
    collator = transformers.DataCollatorForSeq2Seq(mine, label_pad_token_id=-100)
    trainer = Trainer(
        fakes.gpt2()[0], arguments(tmp_path), train_dataset=rows(), data_collator=collator, processing_class=other
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {5}


def test_the_library_may_be_given_our_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "Trainer", Trainer)
    trainer = built(transformers.Trainer, tmp_path)
    trainer.train()
    assert trainer.state.global_step == 2


# ---- Sequence to sequence ----


def translator(base: Any, folder: Path, **options: Any) -> Any:
    model, tokenizer = fakes.make("t5", "lm")
    data = [{"input_ids": tokenizer(text).input_ids, "labels": tokenizer(text[:4]).input_ids} for text in TEXTS]
    options = {"predict_with_generate": True, "generation_max_length": 8, "per_device_eval_batch_size": 3} | options
    args = transformers.Seq2SeqTrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", **options
    )
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, model)
    return base(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator,
        processing_class=tokenizer,
        compute_metrics=lambda answers: {"width": getattr(answers.predictions, "shape", (0, 0))[1]},
    )


def test_generated_answers_are_those_of_the_library(tmp_path: Path) -> None:
    plain, ours = (translator(base, tmp_path) for base in (transformers.Seq2SeqTrainer, Seq2SeqTrainer))
    assert isinstance(ours, transformers.Seq2SeqTrainer)
    expected, found = (one.predict(one.eval_dataset, max_new_tokens=5) for one in (plain, ours))
    assert found.predictions.tolist() == expected.predictions.tolist()
    assert found.label_ids.tolist() == expected.label_ids.tolist()
    assert found.metrics["test_width"] == expected.metrics["test_width"]


def test_generating_does_not_change_the_evaluation_loss(tmp_path: Path) -> None:
    whole = translator(Seq2SeqTrainer, tmp_path, predict_with_generate=False).evaluate()["eval_loss"]
    trainer = translator(Seq2SeqTrainer, tmp_path)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(whole, abs=1e-5)


# ---- What it costs ----


def test_a_step_unwraps_the_model_at_most_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[int]()
    trainer = built(Trainer, tmp_path, max_steps=6, save_strategy="no", logging_strategy="no")
    unwrap = trainer.accelerator.unwrap_model

    def counted(*given: Any, **named: Any) -> Any:
        calls[trainer.state.global_step] += 1
        return unwrap(*given, **named)

    monkeypatch.setattr(trainer.accelerator, "unwrap_model", counted)
    trainer.train()
    assert max(calls[step] for step in range(2, 5)) <= 2
