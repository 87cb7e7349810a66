"""Language modeling scripts in the way of public tutorials, with the plain Trainer and with ours.

Each script trains without dropout. Weights agree; losses agree, or differ by the factor that docs/drop-in.md states.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import fakes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from matrix import often
from transformers import DataCollatorForLanguageModeling, TrainerCallback, default_data_collator

import fulltune

TEXTS = [f"the king has a {('red', 'blue')[i % 2]} fox {'and the dog was not good ' * (i % 4)}{i}" for i in range(16)]
HELD_OUT = [f"she will be a cat {'of the state ' * (i % 3)}" for i in range(6)]


@dataclass
class Script:
    """Everything that a script passes to the trainer besides the model and its output folder."""

    kind: str = "gpt2"
    arguments: dict[str, Any] = field(default_factory=dict)
    collator: Callable[[Any], Any] | None = None
    rows: Callable[[Any, list[str]], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    subclass: Callable[[Any], Any] = lambda trainer: trainer
    stops_and_resumes: bool = False
    eval_sets: bool = False


def encoded(tokenizer: Any, texts: list[str], **options: Any) -> datasets.Dataset:
    rows = datasets.Dataset.from_dict({"text": texts})
    return rows.map(lambda batch: tokenizer(batch["text"], **options), batched=True, remove_columns=["text"])


def blocks(tokenizer: Any, texts: list[str], size: int = 24) -> datasets.Dataset:
    """Concatenate all texts, and cut them into blocks, as run_clm.py does."""
    ids = list(chain.from_iterable(tokenizer(text).input_ids for text in texts))
    parts = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    return datasets.Dataset.from_dict(
        {"input_ids": parts, "attention_mask": [[1] * size] * len(parts), "labels": parts}
    )


def padded(tokenizer: Any, texts: list[str]) -> datasets.Dataset:
    """Pad to a fixed length, and copy the ids as labels, as many notebooks do."""
    rows = encoded(tokenizer, texts, padding="max_length", max_length=112, truncation=True)
    return rows.map(lambda batch: {"labels": batch["input_ids"]}, batched=True)


def completions(tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch whose labels begin after a prompt of five tokens."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[place, :length] = torch.tensor(row["input_ids"])
        mask[place, :length] = 1
        labels[place, 5:length] = ids[place, 5:length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def right_tokens(prediction: Any) -> dict[str, float]:
    labels = np.asarray(prediction.label_ids)[:, 1:]
    return {"accuracy": float((np.asarray(prediction.predictions)[:, :-1] == labels)[labels != -100].mean())}


def half_loss(base: Any) -> Any:
    class Half(base):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = 0.5 * F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return (loss, outputs) if return_outputs else loss

    return Half


def summed_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = F.cross_entropy(logits, targets, reduction="sum")
    return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 3


def masked(tokenizer: Any) -> Any:
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=5)


def causal(tokenizer: Any) -> Any:
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


_METRICS: dict[str, Any] = {
    "compute_metrics": right_tokens,
    "preprocess_logits_for_metrics": lambda logits, labels: (logits[0] if isinstance(logits, tuple) else logits).argmax(
        -1
    ),
}

SCRIPTS = {
    "causal": Script(collator=causal, arguments={"eval_strategy": "epoch"}),
    "blocks with metrics": Script(
        rows=blocks, collator=lambda _: default_data_collator, options=_METRICS, arguments={"eval_strategy": "epoch"}
    ),
    "padded to a length": Script(rows=padded),
    "accumulation": Script(
        collator=causal, arguments={"gradient_accumulation_steps": 2, "warmup_steps": 1, "learning_rate": 2e-3}
    ),
    "completions by length": Script(
        collator=lambda tokenizer: partial(completions, tokenizer),
        arguments={"train_sampling_strategy": "group_by_length", "eval_strategy": "epoch"},
    ),
    "masked": Script("bert", collator=masked, arguments={"eval_strategy": "epoch"}),
    "masked, two sets, best model": Script(
        "bert",
        collator=masked,
        eval_sets=True,
        arguments={
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_first_loss",
        },
    ),
    "own loss": Script(collator=causal, subclass=half_loss, arguments={"eval_strategy": "epoch"}),
    "loss function": Script(
        collator=causal, options={"compute_loss_func": summed_loss}, arguments={"gradient_accumulation_steps": 2}
    ),
    "resumed": Script(
        collator=causal, stops_and_resumes=True, arguments={"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    ),
    "label smoothing": Script(collator=causal, arguments={"label_smoothing_factor": 0.1}),
}

#: Scripts whose losses are those of transformers, without the factor of a decoder.
_SAME_LOSS = ("completions by length", "masked", "masked, two sets, best model", "own loss", "loss function")


def execute(script: Script, library: Any, folder: Path) -> Any:
    """Run a script with the classes of a library, and return its trainer."""
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if script.kind == "bert":
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def trainer() -> Any:
        model, tokenizer = fakes.make(script.kind, **off)
        rows = script.rows or encoded
        held_out = rows(tokenizer, HELD_OUT)
        arguments = {
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "seed": 3,
            "disable_tqdm": True,
            "use_cpu": True,
            "save_strategy": "no",
        }
        return script.subclass(library.Trainer)(
            model=model,
            args=library.TrainingArguments(**{**arguments, **script.arguments}),
            train_dataset=rows(tokenizer, TEXTS),
            eval_dataset={"first": held_out, "second": held_out.select([0, 1])} if script.eval_sets else held_out,
            data_collator=script.collator(tokenizer) if script.collator else None,
            **script.options,
        )

    one = trainer()
    if script.stops_and_resumes:
        one.add_callback(Stop())
        one.train()
        one = trainer()
        one.train(resume_from_checkpoint=os.path.join(folder, "checkpoint-2"))
    else:
        one.train()
    return one


#: Each way of giving rows, losses and checkpoints once.
OFTEN = ("blocks with metrics", "completions by length", "masked, two sets, best model", "own loss", "loss function")


@pytest.mark.parametrize("name", often(SCRIPTS, lambda name: name in OFTEN))
def test_a_script_trains_the_same_model(name: str, tmp_path: Path) -> None:
    script = SCRIPTS[name]
    plain = execute(script, transformers, tmp_path / "plain")
    ours = execute(script, fulltune, tmp_path / "ours")
    assert ours.state.global_step == plain.state.global_step
    for (key, value), other in zip(ours.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        assert torch.allclose(value, other, atol=2e-5), key
    logs = [[set(line) for line in one.state.log_history] for one in (ours, plain)]
    assert logs[0] == logs[1]
    losses = [[line["loss"] for line in one.state.log_history if "loss" in line] for one in (ours, plain)]
    if name in _SAME_LOSS:
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    else:
        # The factor is tokens by predicted tokens: at most one token per row is not predicted.
        assert all(1 < mine / theirs < 1.1 for mine, theirs in zip(*losses, strict=True))
    for metric in ("eval_accuracy", "eval_second_loss"):
        values = [[line[metric] for line in one.state.log_history if metric in line] for one in (ours, plain)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_masked_losses_are_averaged_over_accumulated_batches(tmp_path: Path) -> None:
    script = Script("bert", collator=masked, arguments={"gradient_accumulation_steps": 2, "max_grad_norm": 0})
    plain, ours = execute(script, transformers, tmp_path / "a"), execute(script, fulltune, tmp_path / "b")
    losses = [[line["loss"] for line in one.state.log_history if "loss" in line] for one in (ours, plain)]
    assert [2 * loss for loss in losses[0][:1]] == pytest.approx(losses[1][:1], rel=0.02)


def test_rows_of_unequal_length_are_padded_without_a_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    rows = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text).input_ids for text in TEXTS[:4])]
    with pytest.raises(ValueError, match="expected sequence of length"):
        transformers.Trainer(model=model, args=fakes.arguments(tmp_path, max_steps=1), train_dataset=rows).train()
    ours = fulltune.Trainer(model=model, args=fakes.arguments(tmp_path, max_steps=1), train_dataset=rows)
    assert ours.train().global_step == 1
