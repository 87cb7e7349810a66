"""Scripts written for earlier versions of transformers run after changing their imports."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
)
from transformers.integrations import integration_utils

import fulltune
from fulltune import AutoTokenizer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from fulltune.errors import ArgumentError

PAGE = Path(__file__).parents[2] / "docs" / "drop-in.md"
# Scripts are for any machine; without an accelerator torch warns that memory is not pinned.
NO_ACCELERATOR = "ignore:'pin_memory' argument is set as true"
TEXTS = ["a short one", "a text that is somewhat longer", "tiny", "the last"]

#: An old argument, and what it becomes among those of today.
TRANSLATIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"adafactor": True}, {"optim": "adafactor"}),
    ({"debug": False}, {"debug": []}),
    ({"debug": True}, {"debug": ["tpu_metrics_debug"]}),
    ({"evaluate_during_training": True, "logging_steps": 7}, {"eval_strategy": "steps", "eval_steps": 7}),
    ({"evaluate_during_training": False}, {"eval_strategy": "no"}),
    ({"evaluation_strategy": "epoch"}, {"eval_strategy": "epoch", "do_eval": True, "evaluation_strategy": "epoch"}),
    ({"evaluation_strategy": None, "eval_strategy": "epoch"}, {"eval_strategy": "epoch"}),
    ({"fp16_backend": "auto", "half_precision_backend": "cpu_amp", "fp16_opt_level": "O1"}, {"fp16": False}),
    ({"fsdp_min_num_params": 5}, {"fsdp_config": {"min_num_params": 5}}),
    ({"fsdp_transformer_layer_cls_to_wrap": "Block"}, {"fsdp_config": {"transformer_layer_cls_to_wrap": ["Block"]}}),
    ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
    ({"group_by_length": False}, {"train_sampling_strategy": "random"}),
    (
        {"include_inputs_for_metrics": True, "include_for_metrics": ["loss"]},
        {"include_for_metrics": ["loss", "inputs"]},
    ),
    ({"include_tokens_per_second": True}, {"include_num_input_tokens_seen": "all"}),
    ({"jit_mode_eval": True, "use_ipex": True, "use_mps_device": True}, {"torch_compile": False}),
    ({"logging_dir": "./logs"}, {"logging_dir": "./logs", "report_to": []}),
    ({"model_parallel": False, "mp_parameters": "", "past_index": -1, "sharded_ddp": ""}, {}),
    ({"no_cuda": True}, {"use_cpu": True, "no_cuda": True}),
    ({"optim": "adamw_hf"}, {"optim": "adamw_torch"}),
    ({"optim": "adamw_apex_fused"}, {"optim": "adamw_torch_fused"}),
    ({"overwrite_output_dir": True}, {"overwrite_output_dir": True}),
    ({"per_gpu_train_batch_size": 3}, {"per_device_train_batch_size": 3}),
    ({"per_gpu_eval_batch_size": 3, "per_device_eval_batch_size": 3}, {"per_device_eval_batch_size": 3}),
    ({"push_to_hub_model_id": "m"}, {"hub_model_id": "m"}),
    ({"push_to_hub_organization": "o"}, {"hub_model_id": "o/results"}),
    ({"push_to_hub_organization": "o", "push_to_hub_model_id": "m"}, {"hub_model_id": "o/m"}),
    ({"push_to_hub_token": "t"}, {"hub_token": "t", "push_to_hub_token": "t"}),
    ({"report_to": None}, {"report_to": []}),
    ({"save_safetensors": True, "tpu_num_cores": 8, "use_legacy_prediction_loop": True}, {}),
    ({"torchdynamo": "eager"}, {"torch_compile": True, "torch_compile_backend": "eager"}),
    ({"tpu_metrics_debug": True}, {"debug": ["tpu_metrics_debug"]}),
    ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
    ({"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_steps": 0.1}),
    ({"warmup_ratio": 0.0, "warmup_steps": 20}, {"warmup_steps": 20}),
]


@pytest.mark.parametrize(("old", "new"), TRANSLATIONS, ids=lambda value: " ".join(value))
def test_an_old_argument_keeps_its_meaning(old: dict[str, Any], new: dict[str, Any]) -> None:
    arguments = TrainingArguments("results", **({"use_cpu": True} | old))
    assert {name: getattr(arguments, name) for name in new} == new
    assert arguments.to_dict().keys() == transformers.TrainingArguments("results", use_cpu=True).to_dict().keys()


def test_checkpoints_follow_the_evaluations_that_choose_the_best() -> None:
    options: dict[str, Any] = {"load_best_model_at_end": True, "use_cpu": True}
    assert TrainingArguments("o", evaluation_strategy="epoch", **options).save_strategy == "epoch"
    assert TrainingArguments("o", eval_strategy="steps", eval_steps=30, **options).save_steps == 30
    assert TrainingArguments("o", eval_strategy="steps", eval_steps=50, **options).save_steps == 500
    with pytest.raises(ValueError, match="requires the save and eval strategy to match"):
        TrainingArguments("o", eval_strategy="epoch", save_strategy="steps", **options)


def test_batches_of_the_accelerator_keep_their_options() -> None:
    options: dict[str, Any] = {"dispatch_batches": False, "split_batches": True}
    config = TrainingArguments("results", accelerator_config={"even_batches": False}, **options).accelerator_config
    assert (config.dispatch_batches, config.split_batches, config.even_batches) == (False, True, False)


@pytest.mark.parametrize(
    ("kind", "name"), [(TrainingArguments, "xpu_backend"), (transformers.TrainingArguments, "ddp_backend")]
)
def test_a_backend_of_processes_needs_them(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match="process group"):
        kind("results", use_cpu=True, **{name: "gloo"})


def test_a_warmup_ratio_of_one_is_all_steps() -> None:
    assert TrainingArguments("results", warmup_ratio=1.0).get_warmup_steps(300) == 300
    assert TrainingArguments("results", warmup_ratio=0.06).get_warmup_steps(50) == 3


def test_the_scope_of_ray_is_set_where_its_search_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SCOPE", "last")
    TrainingArguments("results", ray_scope="all")
    assert os.environ["RAY_SCOPE"] == "all"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_cuda": True, "use_cpu": False}, "no_cuda=True contradicts use_cpu=False"),
        ({"evaluation_strategy": "epoch", "eval_strategy": "no"}, "contradicts eval_strategy='no'"),
        ({"evaluation_strategy": "epoch", "evaluate_during_training": True}, "contradicts evaluate_during_training"),
        ({"group_by_length": True, "train_sampling_strategy": "random"}, "contradicts train_sampling_strategy"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "warmup_ratio=0.1 contradicts warmup_steps=5"),
        (
            {"per_gpu_train_batch_size": 4, "per_device_train_batch_size": 8},
            "contradicts per_device_train_batch_size=8",
        ),
        ({"adafactor": True, "optim": "sgd"}, "contradicts optim='sgd'"),
        ({"split_batches": True, "accelerator_config": {"split_batches": False}}, "contradicts accelerator_config"),
        ({"save_safetensors": False}, "torch.save"),
        ({"sharded_ddp": "simple"}, "fsdp"),
        ({"model_parallel": True}, "device_map"),
        ({"past_index": 0}, "past"),
        ({"mp_parameters": "x"}, "launcher"),
        ({"fp16_opt_level": "O3"}, "O3"),
        ({"warmup_ratio": 3}, "from 0 to 1"),
        ({"warmup_ratio": "0.1"}, "from 0 to 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honored_is_a_value_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        TrainingArguments("results", **options)
    assert isinstance(raised.value, ArgumentError)


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ValueError, match=r"2 problems:\n.*past_index=1.*\n.*save_safetensors=False"):
        TrainingArguments("results", save_safetensors=False, past_index=1, no_cuda=True)


def test_an_unknown_argument_is_unknown() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'warmup_percent'"):
        TrainingArguments("results", warmup_percent=1)  # type: ignore[call-arg]


def test_each_old_argument_is_reported_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.runtime.log_once._written", set())
    with caplog.at_level(logging.WARNING, "fulltune"):
        for _ in range(2):
            TrainingArguments("results", no_cuda=True, logging_dir="logs", report_to=None)
    assert [record.getMessage().split(" is of")[0] for record in caplog.records] == [
        "`logging_dir`",
        "`no_cuda`",
        "`report_to=None`",
    ]


def test_a_command_line_takes_them() -> None:
    line = "--output_dir o --evaluation_strategy steps --overwrite_output_dir --warmup_ratio 0.2 --no_cuda"
    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line.split())
    assert (arguments.eval_strategy, arguments.warmup_steps, arguments.use_cpu) == ("steps", 0.2, True)
    assert arguments.overwrite_output_dir


@dataclasses.dataclass
class OwnArguments(TrainingArguments):
    extra: int = 3
    optim: str = "adamw_torch"


def test_a_subclass_takes_them() -> None:
    arguments = OwnArguments("o", evaluation_strategy="epoch", extra=5, use_cpu=True)
    assert (arguments.eval_strategy, arguments.extra) == ("epoch", 5)
    assert "evaluation_strategy" not in arguments.to_dict()


@pytest.mark.parametrize("kind", [TrainingArguments, Seq2SeqTrainingArguments])
def test_a_subclass_that_is_no_dataclass_has_the_current_arguments(kind: Any) -> None:
    # The first object of a copy of the class: one of the class itself may have been created already.
    base = dataclasses.dataclass(type("Base", (kind,), {}))
    arguments = type("Plain", (base,), {})("o", no_cuda=True)
    assert arguments.to_dict().keys() == base("o", use_cpu=True).to_dict().keys()
    assert not arguments.to_dict().keys() & {"no_cuda", "adafactor", "warmup_ratio"}
    (parsed,) = HfArgumentParser(type(arguments)).parse_args_into_dataclasses(["--output_dir", "o", "--no_cuda"])
    assert parsed.use_cpu


@dataclasses.dataclass
class OwnDefaults(TrainingArguments):
    """Defaults as in scripts for QLoRA."""

    group_by_length: bool = True
    warmup_ratio: float = 0.03


def test_defaults_of_a_subclass_give_way() -> None:
    arguments = OwnDefaults("o", warmup_steps=5, use_cpu=True)
    assert (arguments.train_sampling_strategy, arguments.warmup_steps) == ("group_by_length", 5)
    assert OwnDefaults("o", use_cpu=True).warmup_steps == 0.03
    assert OwnDefaults("o", use_cpu=True, group_by_length=False).train_sampling_strategy == "random"
    assert dataclasses.replace(arguments, warmup_steps=7).warmup_steps == 7
    (parsed,) = HfArgumentParser(OwnDefaults).parse_args_into_dataclasses(["--output_dir", "o", "--use_cpu"])
    assert (parsed.train_sampling_strategy, parsed.warmup_steps) == ("group_by_length", 0.03)


@pytest.mark.parametrize("kind", [TrainingArguments, Seq2SeqTrainingArguments, OwnArguments])
def test_copies_have_the_current_arguments(kind: Any) -> None:
    arguments = kind("o", evaluation_strategy="epoch", no_cuda=True)
    changed = dataclasses.replace(arguments, eval_strategy="steps", eval_steps=3)
    assert (changed.eval_strategy, changed.use_cpu) == ("steps", True)
    assert pickle.loads(pickle.dumps(arguments)).to_dict() == arguments.to_dict()
    assert isinstance(arguments, transformers.TrainingArguments)


def test_the_page_lists_every_argument() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    extra = {one.name for one in dataclasses.fields(TrainingArguments)}
    assert rows == sorted(extra - {one.name for one in dataclasses.fields(transformers.TrainingArguments)})


# ---- The classic script ----


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """A data set as tutorials write it."""

    def __init__(self, encodings: Any, labels: Any = None) -> None:
        self.encodings, self.labels = encodings, labels

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = {key: torch.tensor(value[index]) for key, value in self.encodings.items()}
        item["labels"] = item["input_ids"].clone() if self.labels is None else torch.tensor(self.labels[index])
        return item

    def __len__(self) -> int:
        return len(self.encodings["input_ids"])


@pytest.fixture
def unpadded(tmp_path: Path) -> Path:
    """Return the folder of a GPT-2 without a padding token, like the original."""
    model, tokenizer = fakes.make("gpt2")
    tokenizer.pad_token = model.config.pad_token_id = None
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.filterwarnings(NO_ACCELERATOR)
@pytest.mark.parametrize("labels", [None, [0, 1, 0, 1]], ids=["text", "classes"])
def test_the_classic_script(unpadded: Path, monkeypatch: pytest.MonkeyPatch, labels: list[int] | None) -> None:
    monkeypatch.chdir(unpadded.parent)
    tokenizer = AutoTokenizer.from_pretrained(unpadded)
    encodings = tokenizer(TEXTS, truncation=True, padding=True)
    kind: Any = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    arguments = TrainingArguments(
        output_dir="./results",
        num_train_epochs=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        warmup_steps=2,
        weight_decay=0.01,
        logging_dir="./logs",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=kind.from_pretrained(unpadded),
        args=arguments,
        train_dataset=Rows(encodings, labels),
        eval_dataset=Rows(encodings, labels),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert trainer.state.global_step == 4


def test_a_tokenizer_without_padding_uses_its_end_of_text(unpadded: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(unpadded)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert type(tokenizer) is type(transformers.AutoTokenizer.from_pretrained(unpadded))
    own = AutoTokenizer.from_pretrained(unpadded, pad_token="!")
    assert own.pad_token == "!"


def test_the_end_of_a_text_is_learned_where_it_pads(unpadded: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(unpadded)
    rows = [dict(tokenizer(text + tokenizer.eos_token)) for text in TEXTS]
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(unpadded),
        fakes.arguments(unpadded.parent),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    (batch,) = trainer.get_train_dataloader()
    ends = (batch["labels"] == tokenizer.eos_token_id).sum(dim=1)
    assert (ends >= 1).all()
    assert ((batch["labels"] == -100) == (batch["attention_mask"] == 0)).all()


def test_a_tokenizer_with_padding_is_left_alone(tmp_path: Path) -> None:
    base = fakes.save("bert", tmp_path / "base", "classification")
    ours, plain = AutoTokenizer.from_pretrained(base), transformers.AutoTokenizer.from_pretrained(base)
    assert (ours.pad_token, type(ours), ours.get_vocab()) == (plain.pad_token, type(plain), plain.get_vocab())


# ---- Names of the trainer ----


def _trainer(kind: Any, folder: Path, *, options: dict[str, Any] | None = None, **arguments: Any) -> Any:
    model, tokenizer = fakes.make("bert", "classification")
    rows = Rows(tokenizer(TEXTS, padding=True), [0, 1, 0, 1])
    standard = {"per_device_train_batch_size": 2, "max_steps": 2, "train_sampling_strategy": "sequential"}
    torch.manual_seed(0)
    return kind(
        model=model.eval(),
        args=fakes.arguments(folder, **(standard | arguments)),
        train_dataset=rows,
        eval_dataset=rows,
        **({"tokenizer": tokenizer} if options is None else options),
    )


def test_the_tokenizer_is_the_processing_class(tmp_path: Path) -> None:
    trainer = _trainer(Trainer, tmp_path)
    assert trainer.processing_class is trainer.tokenizer is not None
    with pytest.raises(ValueError, match="tokenizer and processing_class are both passed"):
        _trainer(Trainer, tmp_path, options={"tokenizer": trainer.tokenizer, "processing_class": object()})
    with pytest.raises(AttributeError, match="'nothing'"):
        trainer.nothing  # noqa: B018


def test_only_the_loss_can_be_predicted(tmp_path: Path) -> None:
    trainer = _trainer(Trainer, tmp_path, options={"prediction_loss_only": True})
    assert trainer.args.prediction_loss_only
    assert trainer.is_world_master()


def test_a_checkpoint_can_be_named_as_before(tmp_path: Path) -> None:
    _trainer(Trainer, tmp_path, save_strategy="steps", save_steps=1).train()
    again = _trainer(Trainer, tmp_path, save_strategy="no")
    assert again.train(model_path=str(tmp_path / "checkpoint-1")).global_step == 2
    with pytest.raises(TypeError, match="'path'"):
        again.train(path="x")


class Before(Trainer):
    """Override methods with the arguments that they had in the past."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:  # type: ignore[override]
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any) -> Any:  # type: ignore[override]
        return super().training_step(model, inputs)

    def log(self, logs: Any) -> None:  # type: ignore[override]
        super().log(logs)

    def evaluate(self, eval_dataset: Any = None) -> Any:  # type: ignore[override]
        return super().evaluate(eval_dataset)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool) -> Any:  # type: ignore[override]
        return super().prediction_step(model, inputs, prediction_loss_only)

    def save_model(self, output_dir: Any = None) -> None:  # type: ignore[override]
        super().save_model(output_dir)


def test_overrides_with_old_signatures_are_called_as_before(tmp_path: Path) -> None:
    """The loss of two micro-batches is the mean of theirs."""
    saved = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = _trainer(Before, tmp_path, gradient_accumulation_steps=2, max_steps=1, **saved)
    expected = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx([expected], abs=0.1)
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()


class Mixin:
    """Compute a loss without outputs, as in version 3."""

    def compute_loss(self, model: Any, inputs: Any) -> Any:
        labels = inputs.pop("labels")
        return torch.nn.functional.cross_entropy(model(**inputs)[0], labels)


class First(Mixin, Trainer):  # type: ignore[misc]
    pass


def test_a_loss_without_outputs_can_be_evaluated(tmp_path: Path) -> None:
    before, first = (
        _trainer(kind, tmp_path).predict(_trainer(kind, tmp_path).train_dataset) for kind in (Before, First)
    )
    assert first.metrics["test_loss"] == pytest.approx(before.metrics["test_loss"])
    assert (first.predictions == before.predictions).all()


@pytest.mark.parametrize("options", [{}, {"tb_writer": object()}])
def test_tensorboard_logs_where_the_script_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=None))
    trainer = Trainer(
        fakes.make("bert", "classification")[0],
        TrainingArguments(tmp_path, logging_dir=str(tmp_path / "logs"), report_to="tensorboard", use_cpu=True),
        **options,
    )
    callbacks: Any = trainer.callback_handler.callbacks
    (callback,) = [one for one in callbacks if isinstance(one, integration_utils.TensorBoardCallback)]
    assert (callback.logging_dir, callback.tb_writer) == (str(tmp_path / "logs"), options.get("tb_writer"))


def test_a_search_of_hyperparameters_may_use_old_names(tmp_path: Path) -> None:
    """It checks whether the argument exists, and sets it."""
    arguments = TrainingArguments(tmp_path, use_cpu=True)
    for name, value in {"warmup_ratio": 0.2, "per_gpu_train_batch_size": 3, "adafactor": True}.items():
        assert hasattr(arguments, name)
        setattr(arguments, name, value)
    assert (arguments.warmup_steps, arguments.per_device_train_batch_size) == (0.2, 3)
    assert arguments.optim == "adafactor"


def test_both_names_stay_equal(tmp_path: Path) -> None:
    arguments = TrainingArguments(tmp_path, use_cpu=True, evaluation_strategy="epoch")
    arguments.set_evaluate(strategy="steps", steps=3)
    assert arguments.evaluation_strategy == arguments.eval_strategy == "steps"
    arguments.evaluation_strategy = "no"
    assert arguments.evaluation_strategy == arguments.eval_strategy == "no"


def test_the_names_are_exported() -> None:
    assert {"AutoTokenizer", "Seq2SeqTrainingArguments", "Trainer", "TrainingArguments"} <= set(fulltune.__all__)
