"""The page of a method comparison: self-contained, complete without numbers, escaped, with its Pareto plots."""

from __future__ import annotations

import math
import re
from typing import Any

from page_reader import PageReader

from fulltune.records.methods import MethodComparison, MethodResult, SeedRun, SystemResult, Tried
from fulltune.records.run import Comparison, Score
from fulltune.report.methods import charts, front, render, rows

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"


def score(value: float) -> Score:
    return Score(value=value, low=value - 0.02, high=value + 0.02, n=400)


def against(delta: float, verdict: Any) -> Comparison:
    return Comparison(metric="macro_f1", delta=delta, low=delta - 0.01, high=delta + 0.01, p=0.0005, verdict=verdict)


def seed_run(seed: int, value: float) -> SeedRun:
    return SeedRun(
        seed=seed,
        run_id=f"20260101-120000-classification-m-{seed:04x}",
        score=score(value),
        outcome="accepted",
        base_kept=seed == 18,
        tokens=120_000,
        seconds=75.0,
        tokens_per_second=1600.0,
        memory_bytes=3_400_000_000,
        device_bytes=0,
        optimizer_bytes=180_000_000,
        disk_bytes=90_000_000,
        retention={"general text (en)": 0.04},
    )


def trial(rate: float, value: float) -> Tried:
    state = "whole" if math.isfinite(value) else "broke"
    settings = {"train.learning_rate": rate}
    return Tried(number=0, settings=settings, value=value, state=state, seconds=9.0, tokens=10)


def measured(name: str, value: float, memory: int, seconds: float, **fields: Any) -> MethodResult:
    kept: dict[str, Any] = {
        "trainable": 1000,
        "total": 22_700_000,
        "optimizer_bytes": 8000,
        "tokens_per_second": 1500.0,
        "tokens": 120_000,
        "disk_bytes": 90_000_000,
        "score": score(value),
        "spread": 0.008,
        "retention": {"general text (en)": 0.04, "general text (ru)": 0.12},
        "runs": (seed_run(17, value), seed_run(18, value)),
        "rates": (trial(1e-4, 0.8), trial(3e-4, 0.9), trial(1e-3, math.nan)),
        "rate": 3e-4,
    }
    return MethodResult(method=name, status="measured", memory_bytes=memory, seconds=seconds, **(kept | fields))


def comparison(**changes: Any) -> MethodComparison:
    fields: dict[str, Any] = {
        "fulltune": "0.1.0",
        "created": "2026-01-01T12:00:00+00:00",
        "machine": "Linux, 2 cores",
        "task": "classification",
        "model": "m",
        "metric": "macro_f1",
        "label": "macro-F1",
        "percent": True,
        "direction": "higher",
        "objective": "macro_f1",
        "confidence": 0.95,
        "rows": {"train": 900, "valid": 100, "eval": 400},
        "steps": 300,
        "seeds": (17, 18),
        "reference": "full",
        "methods": (
            measured("full", 0.9, 3_400_000_000, 75.0),
            measured("lora", 0.88, 1_000_000_000, 60.0, against=against(-0.02, "worse"), at_edge=True),
            measured("prompt-tuning", 0.4, 1_100_000_000, 90.0, against=against(-0.5, "worse"), retention={}),
            MethodResult(method="qlora", status="does not apply", reason="bitsandbytes is not installed"),
        ),
        "baselines": (SystemResult(system="few_shot", score=score(0.3), against=against(-0.6, "worse")),),
        "recommended": "full",
        "headline": "full is better than lora by 2.0 points (1.0 to 3.0) at 3.4× the memory.",
        "notes": ("lora: the best rate is at the edge.",),
        "folder": "runs/methods-x",
    }
    return MethodComparison(**(fields | changes))


def test_the_page_is_complete_and_self_contained() -> None:
    page = render(comparison())
    found = PageReader(page)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert not found.stray
    assert found.unclosed == []
    assert len(ids) == len(set(ids)) == 4
    assert {name for name, _ in found.elements} & {"link", "iframe", "object", "embed", "img", "script"} == set()
    policy = next(str(a["content"]) for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "prefers-color-scheme: dark" in page
    assert "url(" not in page
    assert len(page.encode()) < 60_000


def test_the_answer_comes_first_and_the_table_holds_what_was_measured() -> None:
    text = PageReader(render(comparison())).text
    assert text.startswith("full is better than lora by 2.0 points")
    for line in (
        "recommended",
        "± 0.008 between seeds",
        "3.4 GB",
        "1 min 15 s",
        "1,500 tokens/s",
        "p < 0.001",
        "+12.0%",
    ):
        assert line in text
    assert "does not apply: bitsandbytes is not installed" in text
    assert "general text (ru)" in text
    assert "Few-shot no training" in text
    assert "Satterthwaite 1946" in text
    assert "the base was kept" in text
    assert "at the edge: a better rate may be outside this range" in text


def test_one_seed_and_no_search_are_reported_as_such() -> None:
    methods = (measured("full", 0.9, 10, 1.0, rates=(), spread=math.nan, runs=(seed_run(17, 0.9),)),)
    page = render(comparison(methods=methods, baselines=(), seeds=(17,), notes=()))
    found = PageReader(page)
    assert "Intervals cover the rows only, as there is one seed; the comparison is descriptive" in found.text
    assert "rates" not in found.ids()
    assert "between seeds" not in found.text


def test_charts_are_named_described_and_hold_text() -> None:
    drawn = charts(comparison())
    assert [chart.title for chart in drawn] == ["Macro-F1 over peak memory", "Macro-F1 over training time"]
    for chart in drawn:
        assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", chart.svg)
        assert chart.svg.count('class="ring"') == 2
        assert chart.svg.count('class="diamond"') == 1
        assert "nan" not in chart.svg


def test_nothing_measured_draws_nothing() -> None:
    methods = (MethodResult(method="full", status="failed", reason="killed"),)
    found = comparison(methods=methods, baselines=(), recommended=None)
    assert charts(found) == []
    assert "failed: killed" in PageReader(render(found)).text


def test_the_front_holds_the_nondominated_methods() -> None:
    points = [(3.0, 0.9), (1.0, 0.8), (2.0, 0.7)]
    assert front(points, "higher") == [True, True, False]
    assert front(points, "lower") == [False, True, True]
    assert front([(1.0, 0.5), (1.0, 0.5)], "higher") == [True, True]


def test_text_from_outside_is_escaped() -> None:
    methods = (measured("full", 0.9, 10, 1.0), MethodResult(method=EVIL, status="failed", reason=EVIL))
    page = render(comparison(headline=EVIL, notes=(EVIL,), model=EVIL, methods=methods))
    names = {name for name, _ in PageReader(page).elements}
    assert "img" not in names
    assert "script" not in names


def test_every_row_is_shown_in_order() -> None:
    names = [row.name for row in rows(comparison())]
    assert names == ["full", "lora", "prompt-tuning", "qlora", "Few-shot"]
    assert [row.chosen for row in rows(comparison())] == [True, False, False, False, False]


def test_every_run_is_linked_to_its_report() -> None:
    page = render(comparison())
    for run in ("0011", "0012"):
        assert f'<a href="../20260101-120000-classification-m-{run}/report.html">' in page
    assert re.findall(r'<li><a href="#(\w+)">', page) == ["methods", "pareto", "rates", "runs"]
