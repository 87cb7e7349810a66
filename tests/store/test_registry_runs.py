"""Complete runs and the registry: registering, rolling back, exporting, and answers before and after."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.config import load_config
from fulltune.errors import StoreError
from fulltune.models import inference, load, sources
from fulltune.runtime.config_file import read_value, to_yaml
from fulltune.runtime.files import file_sha256
from fulltune.store.objects import checkpoint_sha256
from fulltune.store.registry.promotion import promote, rollback
from fulltune.store.registry.registry import Registry
from fulltune.tasks.causal_lm import CausalLM
from fulltune.tasks.text2sql.task import Text2SQL

NAME = "classification-base"
WORDS = {"positive": ("good", "great", "yes"), "negative": ("bad", "poor", "no")}


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_rows(path: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            label = ("positive", "negative")[number % 2]
            words = [draw.choice(WORDS[label]), *draw.sample(fakes.WORDS[:50], 8)]
            file.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a read-only base, and make two runs from it."""
    place = tmp_path_factory.mktemp("job")
    base = fakes.save("bert", place / "base")
    (base / "README.md").write_text("---\nlicense: mit\n---\nA base.\n")
    (place / "README.md").write_text("---\nlicense: other\nlicense_name: rows-1.0\n---\nRows.\n")
    for path in (*base.iterdir(), base):
        path.chmod(0o555 if path.is_dir() else 0o444)
    write_rows(place / "train.jsonl", 40, seed=1)
    write_rows(place / "test.jsonl", 24, seed=2)
    config = {
        "model": str(base),
        "task": "classification",
        "data": {"train": str(place / "train.jsonl"), "eval": str(place / "test.jsonl"), "allow_leaks": True},
        "train": {"epochs": 1, "learning_rate": 1e-3, "evaluations": 0},
        "baselines": {"few_shot": 1},
        "evaluation": {"resamples": 100},
        "guards": {"forgetting": None, "overfitting": None},
    }
    (place / "config.yaml").write_text(to_yaml(config))
    before = {path.name: file_sha256(path) for path in base.iterdir()}
    for rate in ("1e-3", "3e-3"):
        fulltune.run(place / "config.yaml", out=place / "runs", overrides=[f"train.learning_rate={rate}"])
    assert {path.name: file_sha256(path) for path in base.iterdir()} == before
    return place


def logits(name: str, out: Path) -> torch.Tensor:
    bundle = load.load(name, "classification", runs=out)
    inputs = [bundle.tokenizer(text).input_ids for text in ("a good film", "the poor king", "yes")]
    return torch.tensor(list(inference.class_logits(bundle, inputs, 3)))


def test_every_run_is_a_version(place: Path) -> None:
    registry = Registry(place / "runs")
    versions = registry.versions(NAME)
    runs = sorted(path.name for path in (place / "runs").glob("*-classification-*"))
    assert sorted(version.lineage.source for version in versions) == runs
    assert {version.lineage.base.sha256 for version in versions} == {checkpoint_sha256(place / "base")}
    for version in versions:
        assert version.sha256 == checkpoint_sha256(place / "runs" / version.lineage.source / "model")


def test_outputs_after_a_rollback_are_those_before(place: Path) -> None:
    out = place / "runs"
    registry = Registry(out)
    one, two = registry.versions(NAME)[:2]
    promote(registry, one, "served", force="a test")
    before = logits(f"{NAME}@served", out)
    promote(registry, two, "served", force="a test")
    assert not torch.equal(logits(f"{NAME}@served", out), before)
    rollback(registry, NAME, "served")
    assert torch.equal(logits(f"{NAME}@served", out), before)


def test_a_version_can_be_tuned_further_and_scored(place: Path) -> None:
    out = place / "runs"
    registry = Registry(out)
    promote(registry, registry.version(f"{NAME}@1"), "start", force="a test")
    record = fulltune.run(place / "config.yaml", out=out, overrides=[f"model={NAME}@start", "train.max_steps=1"])
    newest = registry.version(f"{NAME}@latest")
    assert (record.model.source, newest.lineage.source) == (f"{NAME}@1", record.run_id)
    assert newest.lineage.parents == (f"{NAME}@1",)
    assert load_config(out / record.run_id / "config.yaml").model == f"{NAME}@1"
    found = fulltune.evaluate(f"{NAME}@2", out=out)
    second = fulltune.read_record(out / registry.version(f"{NAME}@2").lineage.source / "record.json")
    assert found.scores["macro_f1"] == second.scores["tuned"]["macro_f1"]
    assert found.system == "tuned"


def test_a_missing_version_is_reported_before_anything_is_loaded(place: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no classification-base@99"):
        fulltune.run(place / "config.yaml", out=place / "runs", overrides=[f"model={NAME}@99"])
    with pytest.raises(StoreError, match=r"Did you mean 'classification-base'"):
        sources.find("classification-bose@1", place / "runs")


# Export.


def test_a_plain_folder_with_a_card(place: Path, tmp_path: Path) -> None:
    done = call("models", "export", f"{NAME}@1", "--to", tmp_path / "plain", "--out", place / "runs", "--json")
    assert done.exit_code == 0, done.output
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    run = place / "runs" / Registry(place / "runs").version(f"{NAME}@1").lineage.source
    assert checkpoint_sha256(tmp_path / "plain") == checkpoint_sha256(run / "model")
    assert os.access(tmp_path / "plain" / "model.safetensors", os.W_OK)
    card = (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    metadata = read_value(card.split("---")[1], "card")
    assert metadata["pipeline_tag"] == "text-classification"
    record = fulltune.read_record(run / "record.json")
    results = {one["type"]: one["value"] for one in metadata["model-index"][0]["results"][0]["metrics"]}
    assert results["accuracy"] == record.scores["tuned"]["accuracy"].value
    assert str(place) not in card
    for words in ("## Data", "## Scores", "## Limits", "Zero-shot", record.model.sha256, "test.jsonl"):
        assert words in card, words
    assert "Base: mit. Data: rows-1.0." in card
    assert "## Rows that got worse" in card
    assert call("models", "export", f"{NAME}@1", "--to", tmp_path / "plain", "--out", place / "runs").exit_code == 1


def test_a_delta_restores_both_ends(place: Path, tmp_path: Path) -> None:
    out, file = place / "runs", tmp_path / "x.delta"
    done = call("models", "export", f"{NAME}@1", "--delta", file, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["delta"]["ratio"] > 0
    for source, side in ((place / "base", "tuned"), (f"{NAME}@1", "base")):
        back = call("models", "apply-delta", source, file, "--to", tmp_path / side, "--out", out, "--json")
        assert json.loads(back.stdout)["side"] == side
    tuned = load_file(out / Registry(out).version(f"{NAME}@1").lineage.source / "model" / "model.safetensors")
    restored = load_file(tmp_path / "tuned" / "model.safetensors")
    assert all(torch.equal(restored[name], value) for name, value in tuned.items())
    assert checkpoint_sha256(tmp_path / "base") == checkpoint_sha256(place / "base")


def test_a_base_that_has_changed_gives_no_delta(place: Path, tmp_path: Path) -> None:
    config = place / "base" / "config.json"
    content = config.read_bytes()
    config.chmod(0o644)
    try:
        config.write_bytes(content + b" ")
        done = call("models", "export", f"{NAME}@1", "--delta", tmp_path / "d", "--out", place / "runs")
        assert done.exit_code == 1
        assert "has changed" in done.stderr
    finally:
        config.write_bytes(content)
        config.chmod(0o444)


def test_an_export_to_nowhere_is_refused(place: Path) -> None:
    assert "Add --to DIR" in call("models", "export", f"{NAME}@1", "--out", place / "runs").stderr


# Before and after.


@pytest.mark.parametrize("names", [("base", "tuned"), ("latest",), (f"{NAME}@1", "base")])
def test_ask_gives_the_answers_of_base_and_tuned_model(names: tuple[str, ...], place: Path) -> None:
    asked = ("compare", *names, "--ask", "a good film", "--out", place / "runs", "--json")
    done = call(*asked)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found["answers"]) == list(names if len(names) == 2 else ("base", "tuned"))
    for answer in found["answers"].values():
        assert answer["output"] in WORDS
        assert 0 <= answer["values"]["confidence"] <= 1
    assert call(*asked).stdout == done.stdout
    assert "confidence" in call(*asked[:-1]).stdout


def test_impossible_questions_are_refused(place: Path) -> None:
    out = ("--out", place / "runs")
    refused = call("compare", place / "base", "nothing", "--ask", "x", *out).stderr
    assert f"{str(place / 'base')!r} is a model folder without a task" in refused
    assert "'nothing' is neither a run nor a version" in refused
    config = ("--config", place / "config.yaml")
    assert "one model with --config" in call("compare", "base", "tuned", "--ask", "x", *config, *out).stderr


def test_rows_that_tuning_fixed_and_broke(place: Path) -> None:
    run = Registry(place / "runs").version(f"{NAME}@2").lineage.source
    done = call("compare", "base", run, "--data", "--out", place / "runs", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    lines = [json.loads(line) for line in (place / "runs" / run / "predictions.jsonl").read_text().splitlines()]
    answers = {name: {x["id"]: x for x in lines if x["system"] == name} for name in ("zero_shot", "tuned")}
    right = {name: {row for row, x in rows.items() if x["output"] == x["reference"]} for name, rows in answers.items()}
    assert {row["id"] for row in found["fixed"]} == right["tuned"] - right["zero_shot"]
    assert {row["id"] for row in found["broken"]} == right["zero_shot"] - right["tuned"]
    assert found["counted"] == [len(found["fixed"]), len(found["broken"])]
    assert any(found["counted"])
    for row in found["fixed"]:
        assert (row["before"], row["after"]) == (
            answers["zero_shot"][row["id"]]["output"],
            answers["tuned"][row["id"]]["output"],
        )
    swapped = json.loads(call("compare", f"{NAME}@2", f"{NAME}@1", "--data", "--out", place / "runs", "--json").stdout)
    straight = json.loads(call("compare", f"{NAME}@1", f"{NAME}@2", "--data", "--out", place / "runs", "--json").stdout)
    assert swapped["counted"] == straight["counted"][::-1]
    assert "the best baseline, to the tuned model" in call("compare", run, "--data", "--out", place / "runs").stdout


def test_a_decoder_continues_the_text_verbatim() -> None:
    task = CausalLM(load_config({"model": "m", "task": "causal-lm", "data": {"train": "gone.jsonl"}}))
    bundle = fakes.bundle("gpt2")
    answers = task.ask(bundle, "tuned", "the king")
    cap = task.config.evaluation.max_new_tokens
    prompt = bundle.tokenizer("the king").input_ids
    [wanted] = inference.generate(bundle, [prompt], 1, cap)
    assert (answers.output, answers.input) == (wanted.text, "the king")


@pytest.mark.parametrize(
    ("databases", "place", "message"),
    [(1, "", ""), (2, "a", ""), (2, "", "--db.*: a, b"), (1, "z", "no database 'z'")],
)
def test_a_query_comes_with_its_rows(databases: int, place: str, message: str, tmp_path: Path) -> None:
    for name in "ab"[:databases]:
        with sqlite3.connect(tmp_path / f"{name}.sqlite") as db:
            db.execute("CREATE TABLE t (x)")
            db.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(30)])
        db.close()
    data = {"train": "gone.jsonl", "databases": str(tmp_path)}
    task = Text2SQL(load_config({"model": "m", "task": "text2sql", "data": data}))
    task.predictor = lambda bundle, system: lambda rows: iter([task.prediction(system, rows[0], QUERY)])  # type: ignore[method-assign, assignment, misc]
    if message:
        with pytest.raises(fulltune.FulltuneError, match=message):
            task.ask(fakes.bundle("t5"), "tuned", "how many?", place)
        return
    answers = task.ask(fakes.bundle("t5"), "tuned", "how many?", place)
    assert (answers.output, answers.values["rows"], answers.values["count"]) == (
        QUERY.text,
        [[n] for n in range(10)],
        30,
    )


QUERY = inference.Generated(text="SELECT x FROM t", tokens=4, capped=False)
