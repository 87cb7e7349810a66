"""Models with few positions, and heads of another size than their config declares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import fulltune
from fulltune.errors import DataError, ModelError
from fulltune.models.fast_paths import require_computable, require_trainable
from fulltune.models.load import load
from fulltune.records.run import Prediction
from fulltune.runtime.json_lines import Lines


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "lm"), ("bert", "classification"), ("bart", "lm")])
@pytest.mark.parametrize("positions", [16, 8])
def test_probes_fit_into_few_positions(kind: str, head: str, positions: int) -> None:
    name = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    model = fakes.bundle(kind, head).model
    config = type(model.config).from_dict({**model.config.to_dict(), name: positions})
    small = type(model)(config)
    require_computable(small)
    require_trainable(small)


def stored(folder: Path, classes: int) -> str:
    """Save a head of this many classes whose config names none."""
    fakes.save("bert", folder, "classification", labels=[f"c{n}" for n in range(classes)])
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_head_of_another_size_than_its_config_is_initialized(tmp_path: Path) -> None:
    found = load(stored(tmp_path, 3), "classification", labels=("no", "yes"))
    assert found.stored_head is None
    assert len(found.model.classifier.weight) == 2
    assert found.info.reconciled == (
        "the stored classification head has 3 classes, config.json 2: a new head was created for 'no', 'yes'",
    )


def test_such_a_head_cannot_be_used_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has 3 classes, config.json 2; expected the same number.*id2label"):
        load(stored(tmp_path, 3), "classification")


def test_a_head_without_names_gets_new_ones(tmp_path: Path) -> None:
    [fact] = load(stored(tmp_path, 2), "classification", labels=("no", "yes")).info.reconciled
    assert "'LABEL_0', 'LABEL_1', none of which occurs in the data: a new head was created for 'no', 'yes'" in fact


def run(folder: Path, cap: int, **data: Any) -> fulltune.Record:
    rows = [{"prompt": f"say {'x' * (n % 40)} {n}", "completion": f"{n}"} for n in range(10)]
    return fulltune.run(
        model=str(folder),
        task="causal-lm",
        data={"train": rows[2:], "eval": rows[:2], **data},
        train={"max_steps": 1, "evaluations": 0},
        guards={"forgetting": None},
        evaluation={"resamples": 100, "max_new_tokens": cap, "continuations": 2},
        baselines={"few_shot": 1},
        out=folder.parent,
    )


def test_plain_use_of_the_saved_model_stops_at_the_last_position(tmp_path: Path) -> None:
    """With more new tokens than positions both the report and ``generate`` stop at the last position."""
    record = run(fakes.save("gpt2", tmp_path / "base"), 200)
    assert any("max_length 129 in place of max_new_tokens" in fact for fact in record.model.reconciled)
    model = tmp_path / record.run_id / "model"
    lines = Lines(tmp_path / record.run_id / "predictions.jsonl", Prediction)
    rows = [row for row in lines if row.system == "tuned"]
    plain = pipeline("text-generation", model=str(model), device="cpu")
    for row in rows:
        answer = plain(row.input, return_full_text=False)[0]["generated_text"]
        assert answer == row.output
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ids = loaded.generate(**tokenizer(rows[0].input, return_tensors="pt"))
    assert ids.shape[1] <= 129


def test_plain_use_counts_new_tokens_where_they_fit_behind_every_prompt(tmp_path: Path) -> None:
    """Fewer positions are reserved for answers of training than an answer may have, but every row of eval has them."""
    record = run(fakes.save("gpt2", tmp_path / "base"), 20, max_target_length=2)
    assert not any("max_new_tokens" in fact for fact in record.model.reconciled)
    model = tmp_path / record.run_id / "model"
    settings = json.loads((model / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 20
    assert settings.get("max_length") is None
    plain = pipeline("text-generation", model=str(model), device="cpu")
    rows = [row for row in Lines(tmp_path / record.run_id / "predictions.jsonl", Prediction) if row.system == "tuned"]
    for row in rows:
        assert plain(row.input, return_full_text=False)[0]["generated_text"] == row.output


def test_documents_of_one_token_are_refused_where_none_can_be_scored(tmp_path: Path) -> None:
    """GPT-2's tokenizer adds no start token; Llama's does."""
    letters = [{"text": letter} for letter in "abcdefghijkl"]
    job: dict[str, Any] = {
        "task": "causal-lm",
        "data": {"train": letters[4:], "eval": letters[:4]},
        "train": {"max_steps": 1, "evaluations": 0},
        "guards": {"forgetting": None},
        "evaluation": {"resamples": 100, "max_new_tokens": 2, "continuations": 0},
        "baselines": {"few_shot": 1},
        "out": tmp_path / "runs",
    }
    gpt2, llama = (str(fakes.save(kind, tmp_path / kind)) for kind in ("gpt2", "llama"))
    with pytest.raises(DataError, match=r"4 rows of eval are a single token.*nothing to predict.*Join short documents"):
        fulltune.run(model=gpt2, **job)
    assert not list(tmp_path.glob("runs/*/baselines.json"))
    assert fulltune.run(model=llama, **job).scores["tuned"]["bits_per_byte"].n == 4
