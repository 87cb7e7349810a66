"""A quick plan against the plan of the loaded model: counts are the same, and memory is a formula."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.cli.render import runs
from fulltune.config import load_config
from fulltune.errors import ModelError
from fulltune.metrics.power import expected_detectable
from fulltune.models.sources import find
from fulltune.pipeline import run
from fulltune.pipeline.job import check_inputs, prepare_job
from fulltune.pipeline.planning import measured_plan, quick_plan, rough_time, stored_model
from fulltune.pipeline.planning.formula import PROGRAM
from fulltune.pipeline.planning.stored_model import StoredModel
from fulltune.records.plan import Plan
from fulltune.report.dataset import details
from fulltune.tasks.base import Features

#: Kind of model → its task, and the columns of its rows.
TASKS = {
    "bert": ("classification", ("text", "label")),
    "gpt2": ("causal-lm", ("text",)),
    "t5": ("seq2seq", ("source", "target")),
}


def config(place: Path, kind: str, **sections: Any) -> dict[str, Any]:
    """Write a model and 40 rows of different lengths, some of them longer than the window of 24 tokens."""
    task, columns = TASKS[kind]
    if not (place / kind).exists():
        fakes.save(kind, place / kind)
    rows = []
    for number in range(40):
        text = " ".join(fakes.WORDS[number + place] for place in range(2 + number % 13))
        values = {"text": text, "label": "ab"[number % 2], "source": text, "target": text.split()[0]}
        rows.append({name: values[name] for name in columns})
    for name, part in (("train", rows[:30]), ("eval", rows[30:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    data = {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl"), "max_length": 24}
    return {
        "model": str(place / kind),
        "task": task,
        "data": data | {"allow_leaks": True, "max_truncated": 1.0} | sections.pop("data", {}),
        "train": {"batch_size": 4, "epochs": 2},
        **sections,
    }


def loaded(raw: dict[str, Any], out: Path) -> Plan:
    return measured_plan.counted_plan(prepare_job(load_config(raw), out))


@pytest.mark.parametrize("kind", TASKS)
def test_counts_are_those_of_the_loaded_model(kind: str, tmp_path: Path) -> None:
    raw = config(tmp_path, kind)
    quick, known = run.plan(raw, out=tmp_path / "runs", quick=True), loaded(raw, tmp_path)
    names = ("task", "method", "rows", "sequences", "total_steps", "warmup_steps", "evaluations", "effective_batch")
    assert [getattr(quick, name) for name in names] == [getattr(known, name) for name in names]
    assert quick.parameters == known.parameters
    assert quick.tokens == pytest.approx(known.tokens, rel=0.02)
    assert quick.data.classes == known.data.classes
    assert quick.detectable == known.detectable
    assert not (tmp_path / "runs").exists()


def test_truncated_rows_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    raw = config(tmp_path, "bert", data={"max_length": 10})
    quick, known = run.plan(raw, out=tmp_path, quick=True), loaded(raw, tmp_path)
    assert known.data.truncation
    assert quick.data.truncation == known.data.truncation
    assert quick.data.lengths == known.data.lengths
    assert quick.too_long == known.too_long


def test_a_window_that_the_model_reduces_is_named(tmp_path: Path) -> None:
    raw = config(tmp_path, "bert", data={"max_length": 4 * fakes.WINDOW})
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": " ".join(fakes.WORDS[:40] * fakes.WINDOW), "label": "a"}) + "\n")
    quick, known = run.plan(raw, out=tmp_path, quick=True), loaded(raw, tmp_path)
    reduced = f"data.max_length is {4 * fakes.WINDOW}, but the model has {fakes.WINDOW} positions: "
    reduced += f"{fakes.WINDOW} is used"
    for plan in (quick, known):
        assert reduced in plan.too_long
        assert plan.data.positions == fakes.WINDOW
        shown = details(plan.data)["truncated"]
        assert (
            shown == f"3.2% of train rows (1 of 31) to the {fakes.WINDOW} positions of the model, which are fewer "
            "than data.max_length"
        )


def test_memory_is_an_estimate_by_the_parts_of_a_measured_plan(tmp_path: Path) -> None:
    raw = config(tmp_path, "bert", speed={"kernels": "off"})
    quick = run.plan(raw, out=tmp_path, quick=True)
    assert not quick.is_measured
    assert quick.seconds == {}
    assert quick.rough_seconds is not None
    assert 0.06 <= quick.rough_seconds < 60  # six steps
    weights = 4 * quick.parameters
    exact = {"weights": weights, "gradients": weights, "optimizer state": 2 * weights, "base model": weights}
    assert exact.items() <= quick.memory.items()
    assert quick.memory["program and data"] == PROGRAM
    longest = max(len(ids) for ids in lengths_of(raw))
    assert quick.memory["activations"] == 4 * 4 * longest * layers(tmp_path / "bert")


def lengths_of(raw: dict[str, Any]) -> list[list[int]]:
    rows = [json.loads(line) for line in Path(raw["data"]["train"]).read_text().splitlines()]
    model = stored_model.read(find(raw["model"]))
    assert model is not None
    return [ids[:24] for ids in model.ids([row["text"] for row in rows])]


def layers(folder: Path) -> int:
    """Return the numbers per token of all blocks: 8 widths of the residual stream and 3 of the feed-forward layer."""
    sizes = json.loads((folder / "config.json").read_text())
    return int(sizes["num_hidden_layers"] * (8 * sizes["hidden_size"] + 3 * sizes["intermediate_size"]))


def test_large_data_is_counted_by_evenly_spaced_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = config(tmp_path, "gpt2")
    exact = run.plan(raw, out=tmp_path, quick=True)
    monkeypatch.setattr(quick_plan, "COUNTED", 10)
    sampled = run.plan(raw, out=tmp_path, quick=True)
    assert sampled.sequences == pytest.approx(exact.sequences, rel=0.2)
    assert sampled.tokens == pytest.approx(exact.tokens, rel=0.2)


def test_a_model_whose_files_do_not_tell_its_size_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = config(tmp_path, "bert")
    monkeypatch.setattr(stored_model, "read", lambda source: None)
    assert run.plan(raw, out=tmp_path, quick=True) == loaded(raw, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    raw = config(tmp_path, "bert")
    (tmp_path / "bert" / name).write_bytes(b"{")
    with pytest.raises(ModelError, match=f"{name}.*the file is damaged"):
        run.plan(raw, out=tmp_path, quick=True)


def test_problems_of_the_data_stop_a_quick_plan(tmp_path: Path) -> None:
    raw = config(tmp_path, "bert", data={"allow_leaks": False})
    raw["data"]["eval"] = raw["data"]["train"]
    result = CliRunner().invoke(app, ["plan", write(tmp_path, raw), "--quick", "--json"])
    assert result.exit_code == 1
    assert "also occur in train" in json.loads(result.stdout)["error"]["message"]


def test_operations_are_six_per_weight_and_token_and_those_of_attention_and_the_output_layer() -> None:
    sizes: dict[str, Any] = {
        "hidden": 8,
        "layers": 2,
        "feed_forward": 32,
        "vocabulary": 100,
        "window": 64,
        "tokenizer": None,
    }
    blocks = 1_000
    model = StoredModel(parameters=blocks + 100 * 8, family="decoder", **sizes)
    text, target = Features([1] * 10, 0, "a"), Features([1] * 10, [1] * 4, "a")
    attention = 12 * 8 * 2 * 10**2
    assert rough_time.operations(text, model, lm=False) == 6 * blocks * 10 + attention
    assert rough_time.operations(target, model, lm=True) == 6 * (blocks * 10 + 100 * 8 * 4) + attention
    both = replace(model, family="encoder-decoder")
    crossed = 12 * 8 * 1 * (10**2 + 4**2 + 10 * 4)
    assert rough_time.operations(target, both, lm=True) == 6 * (blocks / 2 * 14 + 100 * 8 * 4) + crossed


def test_products_that_wait_for_a_core_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StoredModel(
        parameters=1, family="encoder", hidden=8, layers=2, feed_forward=32, vocabulary=100, window=64, tokenizer=None
    )
    waits = cycle([1 / 512, 1 / 1024, 1 / 16])
    clock = accumulate(waits)
    monkeypatch.setattr(rough_time.time, "perf_counter", lambda: next(clock))
    assert rough_time.operations_per_second(model) == 2 * 256 * 8 * 32 * 1024


def test_the_command_shows_what_is_estimated(tmp_path: Path) -> None:
    path = write(tmp_path, config(tmp_path, "bert"))
    shown = " ".join(CliRunner().invoke(app, ["plan", path, "--quick"]).stdout.split())
    assert "at the peak, by a formula" in shown
    assert re.search(r"time roughly [\d.]+ seconds of training, by a formula \(within a factor of 3\)", shown)
    assert "a difference of 39.6 points of Macro-F1, if 20% of 10 rows become right or wrong" in shown
    parsed = json.loads(CliRunner().invoke(app, ["plan", path, "--quick", "--json"]).stdout)
    assert parsed["is_measured"] is False
    for waiting, said in (
        (0.1, ""),
        (
            0.574,
            "waited 57% of the time for a core. The time is that without them; beside them, a run takes about 2 times",
        ),
    ):
        written = StringIO()
        Console(width=300, file=written).print(runs.plan(Plan.model_validate(parsed | {"waiting": waiting})))
        assert ("Other programs use this machine" in written.getvalue()) == bool(said)
        assert said in written.getvalue()
    wrong = CliRunner().invoke(app, ["plan", path, "--quick", "--learning-curve"])
    assert wrong.exit_code == 2
    assert "a learning curve needs trainings" in wrong.stderr


def write(place: Path, raw: dict[str, Any]) -> str:
    path = place / "config.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("rows", [30, 400])
def test_the_expected_difference_is_detected_in_four_of_five_draws(rows: int) -> None:
    value = expected_detectable(rows, 0.95, spread=1.0)
    draws = np.random.default_rng(rows).normal(value, 1.0, size=(20_000, rows)).mean(axis=1)
    detected = np.abs(draws) > 1.959964 / np.sqrt(rows)
    assert detected.mean() == pytest.approx(0.8, abs=0.01)
    assert np.isnan(expected_detectable(5, 0.95, 1.0))


def test_groups_that_change_together_detect_less() -> None:
    sizes = [1, 2, 3, 10, 20, 4, 5, 5]
    value = expected_detectable(sum(sizes), 0.95, 1.0, sizes)
    random = np.random.default_rng(5)
    groups = random.normal(size=(20_000, len(sizes)))
    means = value + groups @ sizes / sum(sizes)
    detected = np.abs(means) > 1.959964 * (groups @ sizes / sum(sizes)).std()
    assert detected.mean() == pytest.approx(0.8, abs=0.01)
    assert expected_detectable(50, 0.95, 1.0, [1] * 50) == pytest.approx(expected_detectable(50, 0.95, 1.0))
    assert np.isnan(expected_detectable(50, 0.95, 1.0, [10] * 5))


def test_a_plan_counts_groups_where_rows_have_some(tmp_path: Path) -> None:
    raw = config(tmp_path, "bert")
    for name, part in (("train", range(30)), ("eval", range(30, 60))):
        rows = [
            {"text": f"{fakes.WORDS[n]} {name} {n}", "label": "ab"[n % 2], "document": f"{name} {n // 3}"} for n in part
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    alone = run.plan(raw, out=tmp_path / "runs", quick=True).detectable
    raw["data"]["group"] = "document"
    quick = run.plan(raw, out=tmp_path / "runs", quick=True)
    found = quick.detectable

    assert found is not None
    assert alone is not None
    assert (found.rows, found.groups, alone.groups, alone.ungrouped) == (30, 10, 0, None)
    assert found.ungrouped == alone.value
    assert found.value == pytest.approx(3**0.5 * alone.value)
    assert loaded(raw, tmp_path).detectable == found
    shown = CliRunner().invoke(app, ["plan", write(tmp_path, raw), "--quick", "--out", str(tmp_path / "runs")])
    words = " ".join(shown.stdout.split())
    assert f"a difference of {100 * found.value:.1f} points of Macro-F1" in words
    assert "those of each of 10 groups together" in words


def test_inputs_are_checked_without_a_model(tmp_path: Path) -> None:
    inputs, files = check_inputs(load_config(config(tmp_path, "bert")), tmp_path)
    assert inputs.task.labels == ("a", "b")
    assert files.folder == tmp_path / "bert"
