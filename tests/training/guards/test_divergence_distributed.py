"""Two processes over gloo roll back together when only one of them sees the fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[2]

SCRIPT = """
import json, os, sys
from pathlib import Path
import fakes
import torch
from fulltune import Trainer
from fulltune.training.guards.divergence import DivergenceGuard
from fulltune.experiments.lr_find import weights_sha256

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
texts = [f"the fox number {number}" for number in range(28)]

def train(name, broken):
    model, tokenizer = fakes.gpt2()
    passes = 0

    def spoil(module, inputs, output):
        nonlocal passes
        passes += torch.is_grad_enabled()  # a trial pass before the first step is none of training
        if passes == broken and rank == 1:
            return output * float("nan")
        return output

    model.get_output_embeddings().register_forward_hook(spoil)
    args = fakes.arguments(
        folder / name,
        per_device_train_batch_size=2,
        num_train_epochs=2,
        learning_rate=1e-3,
        train_sampling_strategy="random",
        ddp_backend="gloo",
    )
    guard = DivergenceGuard(rate_factor=1.0)
    rows = [{"input_ids": tokenizer(text).input_ids, "row_id": text} for text in texts]
    Trainer(model=model, args=args, train_dataset=rows, callbacks=[guard]).train()
    left = [str(path) for path in (folder / name).iterdir()] if (folder / name).exists() else []
    return {"weights": weights_sha256(model), "messages": [event.message for event in guard.events], "left": left}

found = {"broken": train("broken", 13), "whole": train("whole", 0)}
(folder / f"found-{rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_processes_roll_back_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, *launcher, str(script), str(tmp_path)], env=environment, check=True, timeout=300)
    first, second = ([_found(tmp_path, rank)[name] for name in ("broken", "whole")] for rank in (0, 1))
    assert first[0]["weights"] == second[0]["weights"] == first[1]["weights"]
    assert first[0]["left"] == []
    for one in (first[0], second[0]):
        assert len(one["messages"]) == 1
        assert one["messages"][0].startswith("The loss became nan at step 13 (rows ")
        assert "went back to step 10" in one["messages"][0]


def _found(folder: Path, rank: int) -> Any:
    return json.loads((folder / f"found-{rank}.json").read_text())
