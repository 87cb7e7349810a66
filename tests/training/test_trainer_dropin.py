"""A script that used ``transformers.Trainer`` works unchanged, including the classic tutorial."""

from __future__ import annotations

import copy
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import fakes
import pytest
import torch
import transformers
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from fulltune import Trainer
from fulltune.errors import CheckpointError
from fulltune.training.batches.collate import trim
from fulltune.training.objective import kind_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "classic_tutorial.py"
TEXTS = ["a short one", "a text that is somewhat longer", "tiny", "the last"]


def _batches(trainer: Any) -> list[dict[str, Any]]:
    return [dict(batch) for batch in trainer.get_train_dataloader()]


def _sequential(folder: Path, **options: Any) -> Any:
    standard = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "train_sampling_strategy": "sequential"}
    return fakes.arguments(folder, **(standard | options))


# The script is for any machine; without an accelerator torch warns that memory is not pinned.
NO_ACCELERATOR = "ignore:'pin_memory' argument is set as true"


@pytest.mark.filterwarnings(NO_ACCELERATOR)
def test_the_classic_tutorial_runs_with_one_import_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = fakes.save("gpt2", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["classic_tutorial.py", str(base)])
    variables = runpy.run_path(str(EXAMPLE))
    assert variables["trainer"].state.global_step == 9
    before = transformers.AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = transformers.AutoModelForCausalLM.from_pretrained("results").state_dict()
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.filterwarnings(NO_ACCELERATOR)
def test_the_tutorial_with_the_plain_trainer_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the one import makes the difference."""
    source = EXAMPLE.read_text(encoding="utf-8")
    imports = [line for line in source.splitlines() if line.startswith(("import fulltune", "from fulltune"))]
    assert imports == ["from fulltune import Trainer"]
    twin = source.replace("from fulltune import Trainer", "from transformers import Trainer")
    base = fakes.save("gpt2", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["twin.py", str(base)])
    with pytest.raises((KeyError, IndexError, TypeError, ValueError)):
        exec(compile(twin, "twin.py", "exec"), {"__name__": "__main__"})


def _as(kind: str, tokenizer: Any) -> Any:
    columns = tokenizer(TEXTS, padding=True)
    unequal = [dict(tokenizer(text)) for text in TEXTS]
    return {
        "BatchEncoding": columns,
        "dict": dict(columns),
        "tensors": tokenizer(TEXTS, padding=True, return_tensors="pt"),
        "list": unequal,
        "without mask": [{"input_ids": row["input_ids"]} for row in unequal],
        "datasets": datasets.Dataset.from_list(unequal),
        "extra columns": datasets.Dataset.from_list([row | {"text": "x", "length": 3} for row in unequal]),
    }[kind]


ALL = ["BatchEncoding", "dict", "tensors", "list", "without mask", "datasets", "extra columns"]


@pytest.mark.parametrize("pad_is_eos", [True, False])
@pytest.mark.parametrize("kind", ALL)
def test_text_without_labels_is_its_own_label(kind: str, pad_is_eos: bool, tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2(pad_is_eos)
    trainer = Trainer(model=model, args=_sequential(tmp_path), train_dataset=_as(kind, tokenizer))
    batches = _batches(trainer)
    assert [batch["input_ids"].shape[1] for batch in batches] == [len(TEXTS[1]), len(TEXTS[3])]
    rows = [row for batch in batches for row in batch["labels"].tolist()]
    assert [[token for token in row if token != -100] for row in rows] == [tokenizer(text).input_ids for text in TEXTS]


@pytest.mark.parametrize("kind", ["BatchEncoding", "list", "datasets"])
def test_arguments_of_the_user_are_not_modified(kind: str, tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    data = _as(kind, tokenizer)
    rows = list(data) if kind != "BatchEncoding" else dict(data)
    before = copy.deepcopy(rows)
    Trainer(model=model, args=_sequential(tmp_path), train_dataset=data, eval_dataset=data).train()
    assert (list(data) if kind != "BatchEncoding" else dict(data)) == before


def test_columns_can_be_evaluated_and_predicted(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    columns = tokenizer(TEXTS, padding=True)
    trainer = Trainer(model=model, args=_sequential(tmp_path), eval_dataset=columns)
    rows = [dict(tokenizer(text)) for text in TEXTS]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"], abs=1e-5)
    assert trainer.predict(columns).predictions.shape[:2] == (4, len(TEXTS[1]))


def test_several_evaluation_sets_keep_their_names(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    sets = {"one": tokenizer(TEXTS[:2], padding=True), "two": tokenizer(TEXTS[2:], padding=True)}
    metrics = Trainer(model=model, args=_sequential(tmp_path), eval_dataset=sets).evaluate()
    assert {"eval_one_loss", "eval_two_loss"} <= set(metrics)


def test_a_users_collator_is_used(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
    trainer = Trainer(
        model=model, args=_sequential(tmp_path), train_dataset=_as("list", tokenizer), data_collator=collator
    )
    batch = next(iter(trainer.get_test_dataloader(trainer.train_dataset)))
    assert batch["input_ids"].shape[1] % 8 == 0
    assert int((batch["labels"] != -100).sum()) == sum(len(text) for text in TEXTS)


def test_the_language_modeling_collator_no_longer_hides_the_end_of_text(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2(pad_is_eos=True)
    rows = [dict(tokenizer(text + tokenizer.eos_token)) for text in TEXTS]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model=model, args=_sequential(tmp_path), train_dataset=rows, data_collator=collator)
    learned = sum(int((batch["labels"] == tokenizer.eos_token_id).sum()) for batch in _batches(trainer))
    assert learned == len(TEXTS)


def test_masked_language_modeling_keeps_its_own_labels(tmp_path: Path) -> None:
    model, tokenizer = fakes.bert()
    rows = [dict(tokenizer("the king of the tale is good")) for _ in range(4)]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    args = _sequential(tmp_path, remove_unused_columns=True)
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collator)
    labels = torch.cat([batch["labels"].flatten() for batch in _batches(trainer)])
    assert 0 < int((labels != -100).sum()) < labels.numel()
    trainer.train()


def test_left_padding_is_kept_so_that_positions_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    tokenizer.padding_side = "left"
    columns = tokenizer(TEXTS, padding=True)
    trainer = Trainer(model=model, args=_sequential(tmp_path), train_dataset=columns)
    assert {batch["input_ids"].shape[1] for batch in _batches(trainer)} == {len(TEXTS[1])}


def test_length_grouping_reads_a_given_length_column(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    rows = datasets.Dataset.from_list([dict(tokenizer("x" * (1 + i % 7))) | {"length": 1 + i % 7} for i in range(64)])
    args = _sequential(tmp_path, train_sampling_strategy="group_by_length")
    widths = [
        batch["attention_mask"].sum(dim=1).tolist() for batch in _batches(Trainer(model, args, train_dataset=rows))
    ]
    assert sum(max(pair) - min(pair) for pair in widths) < 16


def test_callbacks_and_optimizers_work_as_before(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model=model,
        args=_sequential(tmp_path),
        train_dataset=_as("list", tokenizer),
        callbacks=[Watch()],
        optimizers=(optimizer, None),
    )
    trainer.train()
    assert seen == [1, 2]
    assert trainer.optimizer.optimizer is optimizer


class _PromptMasked(DataCollatorForLanguageModeling):
    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["labels"][:, :2] = -100
        return batch


def test_a_subclass_of_the_language_modeling_collator_keeps_its_labels(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    rows = [dict(tokenizer(text)) for text in TEXTS]
    collator = _PromptMasked(tokenizer, mlm=False)
    trainer = Trainer(model=model, args=_sequential(tmp_path), train_dataset=rows, data_collator=collator)
    assert all(int((batch["labels"][:, :2] != -100).sum()) == 0 for batch in _batches(trainer))


def test_padding_to_a_multiple_is_not_undone(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    rows = [dict(tokenizer(text)) for text in TEXTS]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=16)
    trainer = Trainer(model=model, args=_sequential(tmp_path), train_dataset=rows, data_collator=collator)
    assert {batch["input_ids"].shape[1] % 16 for batch in _batches(trainer)} == {0}


def test_the_tokenizer_decides_on_which_side_rows_are_padded(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    tokenizer.padding_side = "left"
    rows = [dict(tokenizer(text)) for text in TEXTS]
    trainer = Trainer(model=model, args=_sequential(tmp_path), train_dataset=rows, processing_class=tokenizer)
    batch = _batches(trainer)[0]
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["attention_mask"][0, 0] == 0


def test_other_inputs_per_token_keep_the_width_of_the_batch() -> None:
    mask = torch.tensor([[1, 1, 0, 0]])
    for name, value in {"bbox": torch.zeros(1, 4, 4), "token_type_ids": torch.zeros(1, 4, 7)}.items():
        batch = {"input_ids": mask, "attention_mask": mask, "labels": torch.tensor([1]), name: value}
        trim(batch, "class")
        assert batch["input_ids"].shape == (1, 4)
    langs = {"input_ids": mask, "attention_mask": mask, "labels": torch.tensor([1]), "langs": torch.zeros(1, 4)}
    trim(langs, "class")
    assert langs["input_ids"].shape == (1, 4)


def _rows() -> list[dict[str, Any]]:
    _, tokenizer = fakes.gpt2()
    return [{"input_ids": (ids := tokenizer(text).input_ids), "labels": ids} for text in TEXTS]


def _twin(base: Any) -> Any:
    class WithPenalty(base):
        loss_is_scaled_for_ga = False

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            outputs = model(**inputs)
            loss = outputs.loss + 1.0
            return (loss, outputs) if return_outputs else loss

    return WithPenalty


def _loss_history(trainer: Any) -> list[float]:
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    return [value for entry in found for name, value in entry.items() if name in ("loss", "eval_loss")]


def _both(tmp_path: Path, make: Any, **options: Any) -> tuple[list[float], list[float]]:
    histories = []
    for base in (transformers.Trainer, Trainer):
        args = _sequential(tmp_path, logging_steps=1, eval_strategy="epoch", **options)
        model = fakes.gpt2()[0]
        collator = transformers.DataCollatorForTokenClassification(fakes.gpt2()[1])
        trainer = make(base)(
            model=model, args=args, train_dataset=_rows(), eval_dataset=_rows(), data_collator=collator
        )
        histories.append(_loss_history(trainer))
    return histories[0], histories[1]


def test_an_overridden_loss_is_the_users_in_training_and_evaluation(tmp_path: Path) -> None:
    plain, ours = _both(tmp_path, _twin, gradient_accumulation_steps=2, num_train_epochs=2)
    assert len(plain) == 4
    assert ours == pytest.approx(plain, abs=1e-5)


def test_an_overridden_prediction_step_gives_the_evaluation_loss(tmp_path: Path) -> None:
    def make(base: Any) -> Any:
        class Own(base):
            def prediction_step(
                self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
            ) -> Any:
                with torch.no_grad():
                    loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
                assert outputs[0] is outputs["loss"]
                return 2 * loss, None, None

        return Own

    _, ours = _both(tmp_path, make)
    assert ours[-1] > 0  # not NaN
    trainer_loss = _both(tmp_path, lambda base: base)[1][-1]
    assert ours[-1] == pytest.approx(2 * trainer_loss, rel=0.05)


def test_a_class_of_the_same_name_computes_its_own_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = fakes.gpt2()
    own = type("GPT2LMHeadModel", (type(model),), {})
    model.__class__ = own
    assert kind_of(model) is None
    model, tokenizer = fakes.gpt2()
    model.loss_function = lambda logits, labels, **kwargs: logits.sum() * 0 + 7.0
    collator = transformers.DataCollatorForTokenClassification(tokenizer)
    trainer = Trainer(model=model, args=_sequential(tmp_path), eval_dataset=_rows(), data_collator=collator)
    with caplog.at_level("INFO", logger="fulltune"):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(7.0)
    reason = "the loss function of GPT2LMHeadModel was replaced"
    assert caplog.messages.count(f"left to transformers: the loss ({reason})") == 1


class _Notes(transformers.TrainerCallback):
    """Write into every checkpoint, as scripts that save adapters or metrics do."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.found.append((folder / "config.json").exists())
        (folder / "notes.json").write_text("{}")


def _saving(folder: Path, base: Any = Trainer, *, callbacks: Any = (), **options: Any) -> Any:
    args = _sequential(folder, save_strategy="steps", save_steps=1, **options)
    return base(model=fakes.gpt2()[0], args=args, train_dataset=_rows(), callbacks=list(callbacks))


def test_files_that_callbacks_add_to_a_checkpoint_are_kept_and_resumable(tmp_path: Path) -> None:
    notes = _Notes()
    _saving(tmp_path, callbacks=[notes], max_steps=2).train()
    assert notes.found == [True, True]
    assert (tmp_path / "checkpoint-1" / "notes.json").exists()
    resumed = _saving(tmp_path, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


def test_an_overridden_save_model_writes_the_checkpoint(tmp_path: Path) -> None:
    class Own(Trainer):
        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
            (Path(str(output_dir)) / "head.txt").write_text("mine")

    _saving(tmp_path, Own, max_steps=1).train()
    assert (tmp_path / "checkpoint-1" / "head.txt").read_text() == "mine"
    assert not (tmp_path / "checkpoint-1" / "manifest.json").exists()


def test_resuming_without_a_checkpoint_raises_the_error_type_of_the_library(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory") as caught:
        _saving(tmp_path).train(resume_from_checkpoint=True)
    assert isinstance(caught.value, CheckpointError)


def test_a_checkpoint_of_weights_only_is_resumed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _saving(tmp_path, save_only_model=True, max_steps=1).train()
    resumed = _saving(tmp_path, max_steps=2)
    with caplog.at_level("WARNING", logger="fulltune"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2
    assert "holds weights only" in caplog.text


def test_model_init_makes_a_model_for_each_training(tmp_path: Path) -> None:
    args = _sequential(tmp_path, logging_steps=1, max_steps=1)
    trainer = Trainer(model_init=lambda: fakes.gpt2()[0], args=args, train_dataset=_rows())
    first = _loss_history(trainer)
    trainer.model = None  # as hyperparameter_search does after each trial
    assert _loss_history(trainer) == first


def test_a_metric_that_a_callback_adds_can_choose_the_best_checkpoint(tmp_path: Path) -> None:
    class Adds(transformers.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            metrics["eval_bleu"] = 1 / (1 + state.global_step)

    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 2}
    args = _sequential(tmp_path, save_strategy="steps", save_steps=1, metric_for_best_model="bleu", **options)
    trainer = Trainer(model=fakes.gpt2()[0], args=args, train_dataset=_rows(), eval_dataset=_rows(), callbacks=[Adds()])
    trainer.train()
    assert Path(str(trainer.state.best_model_checkpoint)).name == "checkpoint-1"
