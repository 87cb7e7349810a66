"""Retention in complete runs: in the record, in the outcome, and as a reason to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest

import fulltune
from fulltune.errors import ConfigError
from fulltune.records.run import Record, read_record

KNOWN = "It was not the law of the state, and the king has a red fox. "
TALES = [f"Жил-был царь номер {index}, и было у него {index + 1} коня. " for index in range(15)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a decoder that knows one English sentence, so that there is something to forget."""
    import torch

    torch.manual_seed(0)
    model, tokenizer = fakes.gpt2()
    ids = torch.tensor([tokenizer(KNOWN).input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("known") / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def plain(base: Path, place: Path) -> Record:
    """Return a run that forgets."""
    return fulltune.run(job(base, place), out=place / "runs")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def job(base: Path, place: Path, **options: Any) -> dict[str, Any]:
    write(place / "train.jsonl", [{"text": text} for text in TALES[:9]])
    write(place / "eval.jsonl", [{"text": text} for text in TALES[9:]])
    probe = write(place / "probe.jsonl", [{"text": KNOWN} for _ in range(6)])
    return {
        "model": str(base),
        "task": "causal-lm",
        "data": {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl")},
        "train": {"epochs": 6, "batch_size": 3, "learning_rate": 1e-2, "evaluations": 6},
        "baselines": {"few_shot": 1, "skip": ["ngram"]},  # which knows these short tales as well
        "evaluation": {"resamples": 200, "max_new_tokens": 4, "continuations": 1},
        "guards": {"forgetting": {"probe": probe} | options},
    }


@pytest.mark.filterwarnings("ignore:.*had no room for all")
@pytest.mark.parametrize(
    ("action", "outcome"), [("warn", "undecided"), ("reject", "rejected"), ("stop", "stopped")], ids=str
)
def test_forgetting_is_recorded_and_has_its_consequence(
    action: str, outcome: str, base: Path, place: Path, plain: Record
) -> None:
    record = plain if action == "warn" else fulltune.run(job(base, place, action=action), out=place / "runs")
    found = record.retention["general text"]
    assert found.verdict == "lost"
    assert found.base.value < found.tuned.value
    assert found.change == pytest.approx(found.tuned.value / found.base.value - 1)
    assert record.outcome == outcome
    assert read_record(record.folder / "record.json").retention == record.retention
    page = (record.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="retention"' in page
    assert "lost" in page
    assert record.recommendation is not None
    assert (record.recommendation.use, record.recommendation.action) == ("", "keep more")
    assert "More of general text was lost than the budget allows" in record.recommendation.sentence
    if action != "stop":
        assert record.headline.startswith("Keep more. Too much was forgotten. Tuning improved bits per byte")
        assert record.reasons[0].startswith("general text: Bits per byte")
    if action == "stop":
        [event] = [event for event in record.guards if event.guard == "forgetting"]
        assert event.verdict == "stop"
        assert record.training.steps == event.step < 18


@pytest.mark.filterwarnings("ignore:.*had no room for all")
def test_the_guard_can_be_turned_off_and_a_model_that_did_not_move_keeps_all(base: Path, tmp_path: Path) -> None:
    config = job(base, tmp_path, action="reject")
    config["train"] |= {"learning_rate": 1e-30, "max_steps": 1}
    kept = fulltune.run(config, out=tmp_path / "runs").retention["general text"]
    assert (kept.change, kept.verdict) == (0.0, "kept")
    config["guards"] = {"forgetting": None}
    assert fulltune.run(config, out=tmp_path / "runs").retention == {}


def test_an_invalid_set_is_refused_before_anything_is_loaded(base: Path, tmp_path: Path) -> None:
    config = job(base, tmp_path, sets={"law": {"task": "clasification", "data": {"train": "x"}}})
    with pytest.raises(ConfigError, match=r"sets\.law\.task"):
        fulltune.run(config, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.filterwarnings("ignore:.*had no room for all")
@pytest.mark.parametrize(
    "wanted",
    [{"replay": 0.5}, {"l2_sp": 0.5}, {"ewc": 5.0}, {"distill": 1.0}, {"layer_decay": 0.3}],
    ids=lambda wanted: next(iter(wanted)),
)
def test_each_mitigation_keeps_more_than_none(wanted: dict[str, Any], base: Path, place: Path, plain: Record) -> None:
    config = job(base, place)
    general = write(place / "general.jsonl", [{"text": KNOWN}] * 4)
    config["regularize"] = {"replay_from": general} | wanted
    mild = fulltune.run(config, out=place / "runs")
    assert mild.retention["general text"].change < 0.8 * plain.retention["general text"].change
    assert mild.scores["tuned"]["bits_per_byte"].value < mild.scores["zero_shot"]["bits_per_byte"].value
    rows = {"replay": 18}.get(next(iter(wanted)), 9)
    assert mild.training.rows == rows
    plan = json.loads((mild.folder / "plan.json").read_text())
    assert plan["sequences"] == rows
    assert plan["total_steps"] == mild.training.steps


@pytest.mark.filterwarnings("ignore:.*had no room for all")
def test_the_base_generates_the_text_that_is_replayed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulltune.training.regularization.general_text.SAMPLED", 16)
    config = job(base, tmp_path) | {"regularize": {"replay": 0.5}}
    config["train"]["epochs"] = 1
    record = fulltune.run(config, out=tmp_path / "runs")
    assert record.training.rows == 18


def test_impossible_regularization_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    config = job(base, tmp_path) | {"regularize": {"replay": 0.5, "replay_from": str(tmp_path / "probe.jsonl")}}
    with pytest.raises(ConfigError, match="the probe of guards"):
        fulltune.run(config, out=tmp_path / "runs")
