"""The overfitting guard in complete runs: selection on validation rows only, as reported in the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from transformers import AutoModelForCausalLM

import fulltune
from fulltune.errors import ConfigError
from fulltune.pipeline import run as pipeline
from fulltune.pipeline.run import plan
from fulltune.records.run import Record

WORDS = ("court", "state", "party", "term", "film", "good", "great", "red", "blue", "cat", "dog", "fox", "king")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(seed: int, count: int) -> list[str]:
    random = torch.Generator().manual_seed(seed)
    return [
        " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (12,), generator=random)) + f" {seed} {row}"
        for row in range(count)
    ]


def chance(seed: int, count: int) -> list[dict[str, Any]]:
    """Write rows with random labels: nothing that is learned holds for other rows."""
    return [{"text": text, "label": ("no", "yes")[len(text) % 2]} for text in texts(seed, count)]


def job(place: Path, task: str = "classification", **sections: dict[str, Any]) -> dict[str, Any]:
    kind = "bert" if task == "classification" else "gpt2"
    make = chance if task == "classification" else lambda seed, count: [{"text": text} for text in texts(seed, count)]
    splits = enumerate(("train", "valid", "eval"))
    data = {name: write(place / f"{name}.jsonl", make(seed, 24)) for seed, name in splits}
    folder = place / kind
    if not folder.exists():
        fakes.save(kind, folder)
    return {
        "model": str(folder),
        "task": task,
        "data": data | sections.get("data", {}),
        "train": {"epochs": 6, "batch_size": 8, "learning_rate": 3e-3, "evaluations": 6} | sections.get("train", {}),
        "guards": {"forgetting": None} | sections.get("guards", {}),
        "baselines": {"skip": ["few_shot", *(["tfidf", "linear_probe"] if task == "classification" else ["ngram"])]},
        "evaluation": {"resamples": 100, "max_new_tokens": 4, "continuations": 1},
    }


def run(place: Path, config: dict[str, Any]) -> Record:
    return fulltune.run(config, out=place / "runs")


def watched(record: Record) -> list[tuple[str, int]]:
    return [(event.verdict, event.step) for event in record.guards if event.guard == "overfitting"]


def points(record: Record) -> dict[int, float]:
    return dict(map(tuple, record.details["validation"]["points"]))


@pytest.mark.filterwarnings("ignore:.*had no room for all")
@pytest.mark.parametrize(("task", "metric"), [("classification", "macro_f1"), ("causal-lm", "loss")])
def test_the_best_step_is_the_one_that_is_saved(task: str, metric: str, tmp_path: Path) -> None:
    record = run(tmp_path, job(tmp_path, task, guards={"overfitting": {"patience": 2}}))
    seen = points(record)
    assert record.details["validation"]["metric"] == metric
    assert 0 in seen
    best = min(seen, key=seen.__getitem__) if metric == "loss" else max(seen, key=seen.__getitem__)
    assert watched(record)[-1] == ("continue", best)
    folder = tmp_path / "runs" / record.run_id
    assert not list(folder.glob("best*"))
    again = fulltune.evaluate(
        record.run_id, out=tmp_path / "runs", overrides=[f"data.eval={tmp_path / 'valid.jsonl'}", "data.valid=null"]
    )
    if metric == "macro_f1":
        assert again.scores["macro_f1"].value == pytest.approx(seen[best])
    else:
        assert again.scores["perplexity"].value == pytest.approx(torch.tensor(seen[best]).exp().item(), rel=0.05)


def test_a_base_that_nothing_beats_is_kept_and_recorded(tmp_path: Path) -> None:
    config = job(tmp_path, "causal-lm", train={"learning_rate": 3.0, "max_grad_norm": 0.0, "evaluations": 4})
    config["guards"]["divergence"] = None
    record = run(tmp_path, config)
    assert watched(record)[-1] == ("continue", 0)
    assert record.parameters.moved == 0.0
    assert record.outcome == "rejected"
    assert "The base was kept because no training step beat it." in record.headline
    assert "Nothing beat step 0" in record.reasons[0]
    base = AutoModelForCausalLM.from_pretrained(config["model"]).state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / record.run_id / "model").state_dict()
    assert len(base) > 10
    assert all(torch.equal(value, tuned[name]) for name, value in base.items())
    report = (tmp_path / "runs" / record.run_id / "report.html").read_text()
    assert "Nothing beat step 0, which is kept" in report


def test_the_untrained_head_is_a_candidate(tmp_path: Path) -> None:
    record = run(tmp_path, job(tmp_path, train={"learning_rate": 1e-30, "max_steps": 2, "evaluations": 2}))
    assert watched(record) == [("continue", 0)]
    assert record.outcome == "rejected"


def test_without_validation_rows_nothing_is_selected_and_the_run_reports_it(tmp_path: Path) -> None:
    config = job(tmp_path, data={"valid": None}, train={"epochs": 1})
    record = run(tmp_path, config)
    assert watched(record) == []
    assert "validation" not in record.details
    assert sum("Without data.valid" in line for line in record.training.advice) == 1
    assert sum("Without data.valid" in line for line in plan(config).advice) == 1


@pytest.mark.parametrize("change", [{"guards": {"overfitting": None}}, {"train": {"epochs": 1, "evaluations": 0}}])
def test_the_guard_can_be_turned_off(change: dict[str, Any], tmp_path: Path) -> None:
    record = run(tmp_path, job(tmp_path, **{"train": {"epochs": 1}} | change))
    assert watched(record) == []
    assert sum("train.evaluations is 0" in line for line in record.training.advice) == ("train" in change)


def test_monitoring_does_not_change_the_training(tmp_path: Path) -> None:
    losses = []
    for guard in ({"patience": 0}, None):
        record = run(tmp_path, job(tmp_path, train={"epochs": 2}, guards={"overfitting": guard}))
        steps = (tmp_path / "runs" / record.run_id / "steps.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in steps])
    assert len(losses[0]) > 5
    assert losses[0] == losses[1]


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_wrong_metric_is_refused_before_training(verb: str, tmp_path: Path) -> None:
    config = job(tmp_path, guards={"overfitting": {"metric": "macro_f"}})
    with pytest.raises(ConfigError, match="Did you mean 'macro_f1'"):
        getattr(pipeline, verb)(config, out=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*/steps.jsonl"))


@pytest.mark.filterwarnings("ignore:.*had no room for all")
@pytest.mark.parametrize(("task", "metric"), [("classification", "eval_loss"), ("causal-lm", "bits_per_byte")])
def test_the_metric_can_be_named(task: str, metric: str, tmp_path: Path) -> None:
    record = run(tmp_path, job(tmp_path, task, train={"epochs": 2}, guards={"overfitting": {"metric": metric}}))
    assert record.details["validation"]["metric"] == metric.removeprefix("eval_")
    assert len(points(record)) > 3
