"""Two processes over gloo make the same run as one: the same losses and scores, every row once, one run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
from matrix import often

import fulltune
from fulltune.records.run import Record, read_record


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranks.prepare(tmp_path_factory.mktemp("ranks"))


def _only_record(out: Path) -> Record:
    found = list(out.glob("*/record.json"))
    assert len(found) == 1
    return read_record(found[0])


@pytest.mark.parametrize("kind", often(ranks.KINDS, lambda kind: kind == "bert"))
def test_two_processes_make_the_same_run_as_one(kind: str, place: Path) -> None:
    ranks.launch(place, place / "two", kind)
    one, two = fulltune.run(ranks.config(place, kind), out=place / "one"), _only_record(place / "two" / kind)
    assert (one.training.processes, two.training.processes, two.training.engine) == (1, 2, "ddp")
    assert (one.training.batch_size, two.training.batch_size) == (4, 2)
    assert (two.training.steps, two.training.tokens) == (one.training.steps, one.training.tokens)
    assert two.training.final_loss == pytest.approx(one.training.final_loss, rel=1e-5)
    assert two.parameters.moved == one.parameters.moved
    assert len(one.scores) >= 3
    for system, scores in one.scores.items():
        for metric, score in scores.items():
            assert two.scores[system][metric].n == score.n
            assert two.scores[system][metric].value == pytest.approx(score.value, rel=1e-4, abs=1e-4, nan_ok=True), (
                metric
            )
    assert {name: kept.base.n for name, kept in two.retention.items()} == {
        n: k.base.n for n, k in one.retention.items()
    }
    assert two.details.get("validation") is not None
    assert (two.outcome, two.metric) == (one.outcome, one.metric)
