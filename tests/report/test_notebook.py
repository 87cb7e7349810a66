"""What a notebook shows of results: small, self-contained, escaped, and readable on light and dark pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import samples

from fulltune.errors import StoreError
from fulltune.metrics.run_comparison import RunComparison
from fulltune.records.base import Model
from fulltune.records.plan import Plan
from fulltune.records.run import EvaluationRecord, MetricInfo, ModelInfo, SplitInfo, read_record

HOSTILE = '<script>alert(1)</script> & "quotes"'


class Balanced(HTMLParser):
    """Checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open = list[str]()
        self.seen = set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def shown(record: Model) -> str:
    html = record._repr_html_()
    assert html is not None
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert not parser.seen & {"script", "link", "img", "iframe", "style"}
    # Neither colors of its own nor a background: those of the notebook, light or dark, are kept.
    assert not re.search(r"#[0-9a-f]{3,6}\b|\brgb|http|background: (?!none)", html)
    assert len(html) < 10_000
    return html


def test_a_record_shows_its_headline_scores_and_report(tmp_path: Path) -> None:
    record = samples.record(headline=HOSTILE)
    html = shown(record)
    assert "&lt;script&gt;" in html
    assert "Few-shot" in html
    assert "Macro-F1" in html
    assert record.outcome in html
    assert "report.html" not in html
    samples.Sample(record, [], []).write(tmp_path / "run")
    assert f'href="{tmp_path / "run" / "report.html"}"' in shown(read_record(tmp_path / "run"))


def test_a_plan_shows_memory_and_time() -> None:
    plan = Plan(
        task="classification", method="full", model=HOSTILE, rows={"train": 1200, "eval": 90}, sequences=1200,
        tokens=50_000, steps_per_epoch=75, total_steps=225, warmup_steps=13, effective_batch=16, parameters=5_000_000,
        memory_bytes=80_000_000, machine_bytes=None, baselines=("tfidf", "zero_shot"), evaluations=(56, 112),
        advice=tuple(f"advice {index}" for index in range(12)),
    )  # fmt: skip
    html = shown(plan)
    assert "at least 80 MB" in html
    assert "1,200 train, 90 eval" in html
    assert "advice 7" in html
    assert "advice 8" not in html
    assert "… and 4 more." in html
    measured = shown(
        plan.model_copy(update={"memory": {"weights": 10**8, "logits": 10**8}, "seconds": {"train": 75.0}})
    )
    assert "200 MB, measured" in measured
    assert "1 min 15 s" in measured


def test_evaluations_and_comparisons_show_their_differences() -> None:
    metric = MetricInfo(direction="higher", version=1, source="scikit-learn")
    evaluation = EvaluationRecord(
        model=ModelInfo(source="gpt2", sha256="00", family="encoder", architecture="Bert"), system="tuned",
        task="classification", task_version=1, metric="macro_f1", metrics={"macro_f1": metric},
        data=SplitInfo(source="eval.jsonl", rows=400, sha256="00"),
        scores={"accuracy": samples.score(0.5), "macro_f1": samples.score(0.7)}, seconds=1.0, warnings=(HOSTILE,),
    )  # fmt: skip
    html = shown(evaluation)
    assert html.index("0.700") < html.index("0.500")
    comparison = RunComparison(
        a="one", b="two", task="classification", metric="macro_f1", headline="Better.", metrics={"macro_f1": metric},
        scores={"a": {"macro_f1": samples.score(0.7)}, "b": {"macro_f1": samples.score(0.5)}},
        differences=(samples.versus("macro_f1", 0.2),), row_metric="accuracy",
    )  # fmt: skip
    assert "+0.200" in shown(comparison)


def test_a_record_without_a_view_is_shown_as_text() -> None:
    assert samples.score(0.5)._repr_html_() is None


def test_a_record_knows_its_folder(tmp_path: Path) -> None:
    record = samples.record()
    with pytest.raises(StoreError, match="was not read from a run folder"):
        _ = record.folder
    folder = samples.Sample(record, [], []).write(tmp_path / "run")
    read = read_record(folder / "record.json")
    assert (read.folder, read.report) == (folder, folder / "report.html")
    assert read.to_json() == read_record(folder).to_json() == record.to_json()
    with pytest.raises(StoreError, match=r"plan\.json.*cannot be read"):
        _ = read.plan
    (folder / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be read"):
        _ = read.plan
