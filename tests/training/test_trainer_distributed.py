"""Two processes over gloo compute the same as one, including an evaluation before training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]

SCRIPT = """
import json, os, sys
from pathlib import Path
import fakes
from transformers import TrainerCallback
from fulltune import Trainer

world, folder = int(os.environ.get("WORLD_SIZE", "1")), Path(sys.argv[1])
model, tokenizer = fakes.gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
texts = ["the court shall", "a", "a fox and a dog and a cat", "law is law", "no", "the king is old", "it", "red"]
rows = [{"input_ids": [0, *tokenizer(text).input_ids]} for text in texts]
norms = []

class Norms(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        norms.extend(float(value.grad.norm()) for value in kwargs["model"].parameters())

args = fakes.arguments(
    folder,
    per_device_train_batch_size=4 // world,
    per_device_eval_batch_size=2,
    gradient_accumulation_steps=2,
    num_train_epochs=1,
    max_grad_norm=0,
    train_sampling_strategy="sequential",
    ddp_backend="gloo" if world > 1 else None,
)
trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[Norms()])
evaluated = trainer.evaluate(rows[:7])["eval_loss"]
trainer.train()
if trainer.is_world_process_zero():
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {"eval_loss": evaluated, "loss": losses[0], "norms": norms}
    (folder / "found.json").write_text(json.dumps(found))
"""


def _run(folder: Path, launcher: list[str]) -> Any:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, str(script), str(folder)], env=environment, check=True, timeout=300)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_two_processes_compute_the_same_as_one(tmp_path: Path) -> None:
    one = _run(tmp_path / "one", [])
    two = _run(tmp_path / "two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
    assert len(one["norms"]) == 28
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-6)
