"""The same training by fulltune and by its peers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, TrainerCallback, TrainingArguments
from transformers import default_data_collator as as_they_are

from fulltune.runtime import plugins
from fulltune.training.fit import fit
from tools.processes import tcmalloc
from tools.workloads import BATCH, RATE, Workload

#: Step and training loss.
Curve = list[tuple[int, float]]

ARMS = {
    "fulltune": "fulltune, its defaults",
    "a": "Trainer as in its tutorial",
    "b": "Trainer at its users' best: dynamic padding, group_by_length, fused AdamW",
    "c": "b with tcmalloc preloaded",
    "d": "TRL SFTTrainer with packing",
    "e": "LitGPT",
}


def missing(arm: str, workload: str) -> str | None:
    """Return why an arm cannot be run here, or None."""
    if arm == "c" and tcmalloc() is None:
        return "tcmalloc is not installed (apt-get install libtcmalloc-minimal4)"
    if arm == "d" and workload != "tales":
        return "SFTTrainer packs text for decoders only"
    if arm == "d" and importlib.util.find_spec("trl") is None:
        return "trl is not installed (pip install 'fulltune[bench]')"
    if arm == "e":
        return "LitGPT pins versions of its dependencies that contradict those here, and trains decoders only"
    return None


def train(arm: str, workload: Workload, seed: int, folder: Path) -> Curve:
    """Train a workload's model in place, one pass over its sequences."""
    ways: dict[str, Callable[[Workload, int, Path], Curve]] = {"fulltune": _ours, "a": _tutorial, "d": _sft}
    return ways.get(arm, _best)(workload, seed, folder)


def _ours(workload: Workload, seed: int, folder: Path) -> Curve:
    curve: Curve = []
    short = {
        "epochs": 1,
        "batch_size": BATCH[workload.name],
        "learning_rate": RATE[workload.name],
        "scheduler": "linear",
        "warmup": 0,
        "evaluations": 0,
        "seed": seed,
    }
    guards = workload.config.guards.model_copy(update={"divergence": None})
    config = workload.config.model_copy(
        update={
            "train": workload.config.train.model_copy(update=short),
            "guards": guards,  # peers have none; `fulltune run` writes checkpoints concurrently with training
            "trainer": {"logging_steps": 1},
        }
    )
    fit(
        workload.bundle,
        plugins.load("method", "full")(config),
        workload.train,
        None,
        config,
        output_dir=folder,
        on_step=lambda step, _: curve.append((step.step, step.loss)) if step.loss is not None else None,
    )
    return curve


def _tutorial(workload: Workload, seed: int, folder: Path) -> Curve:
    """Use random batches; a classifier's rows are padded to the window when they are tokenized."""
    collate = _collator(workload)
    if workload.name == "clauses":
        collate = DataCollatorWithPadding(workload.bundle.tokenizer, padding="max_length", max_length=512)
    return _peer(workload, TrainingArguments(**_usual(workload, seed, folder)), collate)


def _best(workload: Workload, seed: int, folder: Path) -> Curve:
    best = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
    return _peer(workload, TrainingArguments(**_usual(workload, seed, folder), **best), _collator(workload))


def _sft(workload: Workload, seed: int, folder: Path) -> Curve:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # FP32 like all others. Gradient checkpointing stays on (its default): GPT-2 needs 24 GB without it (4 x 1024).
    packing = {"packing": True, "max_length": 1024, "optim": "adamw_torch_fused", "bf16": False}
    rows = Dataset.from_dict({"input_ids": [one.input_ids for one in workload.train]})
    log = _Losses()
    SFTTrainer(
        model=workload.bundle.model,
        args=SFTConfig(**_usual(workload, seed, folder), **packing),
        train_dataset=rows,
        processing_class=workload.bundle.tokenizer,
        callbacks=[log],
    ).train()
    return log.curve


def _usual(workload: Workload, seed: int, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH[workload.name],
        "learning_rate": RATE[workload.name],
        "weight_decay": workload.config.train.weight_decay,
        "lr_scheduler_type": "linear",
        "seed": seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def _peer(workload: Workload, args: TrainingArguments, collate: Any) -> Curve:
    rows = [
        {"input_ids": one.input_ids, "attention_mask": [1] * len(one.input_ids), "labels": one.labels}
        for one in workload.train
    ]
    log = _Losses()
    bundle = workload.bundle
    bundle.model.train()
    transformers.Trainer(
        model=bundle.model, args=args, train_dataset=rows, data_collator=collate, callbacks=[log]
    ).train()
    return log.curve


def _collator(workload: Workload) -> Any:
    """Pad to the longest row of a batch; windows need no padding."""
    if workload.name == "tales":
        return as_they_are
    tokenizer = workload.bundle.tokenizer
    if workload.name == "sql":
        return DataCollatorForSeq2Seq(tokenizer, model=workload.bundle.model)
    return DataCollatorWithPadding(tokenizer)


class _Losses(TrainerCallback):
    def __init__(self) -> None:
        self.curve: Curve = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.curve.append((state.global_step, float(logs["loss"])))
