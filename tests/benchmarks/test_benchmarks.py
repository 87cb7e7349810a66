"""Figures that the benchmarks compute from their measurements."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from fulltune.config import load_config

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def row(rate: float, peak: float = 100.0, loss: float = 2.0) -> dict[str, Any]:
    return {"tokens_per_second": rate, "peak_bytes": peak, "eval_loss": loss, "tokens": 9, "curve": [(1, 3.0)]}


def test_targets_are_judged_on_pairs(script: Any) -> None:
    speed = script("speed")
    cells = {
        "fulltune, dropout on": speed.summary([row(30, 50), row(60, 50), row(90, 50)]),
        "b, dropout on": speed.summary([row(10), row(10), row(45)]),
        "c, dropout on": speed.summary([{"error": "tcmalloc is not installed"}]),
    }
    verdicts = {name: (got, verdict) for name, _, got, verdict in speed.judge({"sql": cells}, peak=1e12)}
    assert verdicts["sql: times as fast as b"] == (3.0, "reached")
    assert verdicts["sql: times as fast as c"] == (None, "not measured")
    assert verdicts["sql: peak memory over b's"] == (0.5, "reached")
    assert verdicts["sql: final loss off b's"] == (0.0, "reached")
    assert verdicts["clauses: times as fast as a"] == (None, "not measured")


def test_a_missed_target_is_reported(script: Any) -> None:
    speed = script("speed")
    cells = {f"{arm}, dropout on": speed.summary([row(10, 100, loss)]) for arm, loss in (("fulltune", 2.1), ("b", 2.0))}
    missed = [name for name, _, _, verdict in speed.judge({"sql": cells}, peak=1e12) if verdict == "missed"]
    assert missed == ["sql: times as fast as b", "sql: peak memory over b's", "sql: final loss off b's"]


def test_gpt2_takes_six_operations_per_parameter_plus_attention(script: Any) -> None:
    matrices = [one for name, one in GPT2LMHeadModel(GPT2Config(n_layer=1)).named_parameters() if one.dim() == 2]
    one_layer = sum(one.numel() for one in matrices) - 1024 * 768 - 50257 * 768
    parameters = 12 * one_layer + 50257 * 768
    assert script("speed").gpt2_operations(1.0) == 6 * parameters + 6 * 12 * 1024 * 768


def test_an_arm_that_cannot_run_reports_the_reason(script: Any) -> None:
    arms = script("tools.arms")
    assert arms.missing("fulltune", "tales") is None
    assert arms.missing("b", "sql") is None
    assert "decoders only" in arms.missing("d", "sql")
    assert "LitGPT" in arms.missing("e", "tales")


def test_the_plan_is_checked_on_many_jobs_of_all_families(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_error = script("plan_error")
    monkeypatch.setattr(plan_error, "_write", lambda *names: None)
    configs = [load_config(*plan_error.job(name, Path("place"), 16)) for name in plan_error.JOBS]
    assert len(configs) >= 12
    assert {config.task for config in configs} == {"classification", "causal-lm", "text2sql"}
    assert {config.train.gradient_checkpointing for config in configs} == {True, False}
    assert max(config.train.accumulation for config in configs) > 1
    assert any(config.speed.batch_tokens for config in configs)


def demo_record(outcome: str = "accepted", metric: str = "macro_f1", **scores: float) -> dict[str, Any]:
    return {
        "metric": metric,
        "outcome": outcome,
        "scores": {name: {metric: {"value": value}} for name, value in scores.items()},
        "retention": {"general text (en)": {"change": 0.02}, "pairs": {"change": -0.1}},
        "resources": {"stage_seconds": {"train": 60.0}, "total_seconds": 80.0},
    }


def test_the_margin_of_a_demo_is_that_over_the_strongest_rival(script: Any) -> None:
    demos = script("demos")
    record = demo_record(tuned=0.9, tfidf=0.6, majority=0.3)
    one = demos.result("contracts", "default", 1, record, {"n-gram svm": 0.7}, 107.4)
    assert (one["strongest"], one["margin"], one["lost"]) == ("n-gram svm", pytest.approx(0.2), 0.02)
    assert (one["core_seconds"], one["seconds"]) == (107, {"train": 60.0, "total": 80.0})
    assert demos.passes(one)
    assert not demos.passes({**one, "margin": 0.09})
    rejected = demos.result("contracts", "off", 1, demo_record("rejected", tuned=0.9, tfidf=0.6), {}, 99.0)
    assert not demos.passes(rejected)
    _, (default, off) = demos.table([one, one, rejected])
    assert default[:4] == ["contracts", "default", "2 of 2", "0.900 to 0.900"]
    assert default[4:] == ["0.700 to 0.700 (n-gram svm)", "+0.200", "+2.0%", "107 to 107"]
    assert off[1:3] == ["off", "0 of 1"]


def test_fewer_bits_per_byte_are_a_margin_relative_to_the_rival(script: Any) -> None:
    record = demo_record(metric="bits_per_byte", zero_shot=2.4, few_shot=2.3, tuned=1.7)
    measured = script("demos").result("tales", "default", 1, record, {"xz": 2.2}, 60.0)
    assert (measured["strongest"], measured["margin"]) == ("xz", pytest.approx((2.2 - 1.7) / 2.2, abs=1e-4))


def test_a_compressor_that_knows_the_training_tales_gains_little(script: Any, tmp_path: Path) -> None:
    demos = script("demos")
    assert demos.rivals("tales", demos.prepare("tales", tmp_path).parent)["xz"] > 2
