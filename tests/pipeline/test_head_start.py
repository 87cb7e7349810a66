"""A new classification head starts from a linear probe: its logits against scikit-learn on features read by hooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import fulltune
from fulltune.config import load_config
from fulltune.errors import ConfigError
from fulltune.models.bundle import Bundle
from fulltune.models.heads import dropout_rate, output_layer
from fulltune.pipeline.head_start import with_started_head
from fulltune.pipeline.job import Job, checked_task_and_method, prepare_job

KINDS = {"law": "the court and the law", "film": "a good film of the year", "tale": "the king and the fox"}
EXTRA = fakes.WORDS[20:40]
QUICK: dict[str, Any] = {
    "guards": {"forgetting": None},
    "evaluation": {"resamples": 100},
    "baselines": {"skip": ["tfidf", "linear_probe", "zero_shot", "few_shot"]},
    "train": {"max_steps": 1, "learning_rate": 1e-9},
    "head": {"start": "probe"},
}


def rows(count: int = 12, several: bool = False) -> list[dict[str, Any]]:
    made = []
    for number in range(count):
        for label, words in KINDS.items():
            text = f"{words} {EXTRA[number % 20]} {EXTRA[7 * number % 20]}"
            made.append(
                {"text": text, "labels": [label, "text"][: 1 + number % 2]}
                if several
                else {"text": text, "label": label}
            )
    return made


def job(folder: Path, kind: str, several: bool = False, dropout: float | None = None, **options: Any) -> Job:
    rate = {} if dropout is None else {"hidden_dropout_prob": dropout}
    model = fakes.save(kind, folder / f"{kind}-{dropout}", **rate)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(several=several)))
    data = {"train": str(file), "eval": str(file), "allow_leaks": True}
    return prepare_job(
        load_config({"model": str(model), "task": "classification", "data": data, **QUICK, **options}), folder
    )


def fitted_on(features: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Return the features under the dropout that the probe is fitted with."""
    rate = dropout_rate(bundle.model)
    return features * (np.random.default_rng(17).random(features.shape) >= rate) / (1 - rate)


def norms(bundle: Bundle) -> np.ndarray:
    """Return the norm of the weights of each label."""
    layer = bundle.model.get_submodule(output_layer(bundle.model, len(KINDS)))
    return layer.weight.detach().norm(dim=1).numpy()


def started(job: Job) -> Bundle:
    return with_started_head(job, job.another_model(), job.data.train.examples)


def read_by_head(job: Job, bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """Return what the output layer reads in single forward passes, one row at a time, and the logits."""
    read, logits = [], []
    layer = bundle.model.get_submodule(output_layer(bundle.model, len(job.task.labels)))
    handle = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    for one in job.features:
        with torch.no_grad():
            logits.append(bundle.model(input_ids=torch.tensor([one.input_ids])).logits[0].numpy())
    handle.remove()
    return np.stack([one.reshape(-1, one.shape[-1])[-1].numpy() for one in read]).astype(np.float64), np.stack(logits)


@pytest.mark.parametrize("kind", ["bert", "t5", "bart"])
def test_logits_are_those_of_scikit_learn(kind: str, tmp_path: Path) -> None:
    prepared = job(tmp_path, kind)
    bundle = started(prepared)
    features, logits = read_by_head(prepared, bundle)
    strength = float(bundle.info.reconciled[-1].split("C = ")[1].split()[0])
    noisy = fitted_on(features, bundle)
    scaler = StandardScaler().fit(noisy)
    truth = [prepared.task.labels[one.labels] for one in prepared.features]
    probe = LogisticRegression(C=strength, max_iter=200).fit(scaler.transform(noisy), truth)
    scale = 1 / max(1, np.linalg.norm(probe.coef_ / scaler.scale_, axis=1).max())
    assert logits == pytest.approx(scale * probe.decision_function(scaler.transform(features)), abs=1e-2)
    assert norms(bundle).max() <= 1 + 1e-6


def test_a_head_without_biases_starts_from_a_probe_without_them(tmp_path: Path) -> None:
    prepared = job(tmp_path, "gpt2")
    bundle = started(prepared)
    features, logits = read_by_head(prepared, bundle)
    strength = float(bundle.info.reconciled[-1].split("C = ")[1].split()[0])
    truth = [prepared.task.labels[one.labels] for one in prepared.features]
    noisy = fitted_on(features, bundle)
    width = noisy.std(axis=0)
    probe = LogisticRegression(C=strength, max_iter=200, fit_intercept=False).fit(noisy / width, truth)
    scale = 1 / max(1, np.linalg.norm(probe.coef_ / width, axis=1).max())
    assert logits == pytest.approx(scale * probe.decision_function(features / width), abs=1e-2)


def test_several_labels_start_from_one_probe_each(tmp_path: Path) -> None:
    prepared = job(tmp_path, "bert", several=True, dropout=0.0)
    _, logits = read_by_head(prepared, started(prepared))
    truth = np.array([one.labels for one in prepared.features])
    laws = list(prepared.task.labels).index("law")
    assert ((logits[:, laws] > 0) == (truth[:, laws] > 0)).mean() > 0.9


def test_two_labels_start_from_one_probe(tmp_path: Path) -> None:
    prepared = job(tmp_path, "bert", dropout=0.0)
    kept = [one for one in prepared.data.train.examples if one.target != "tale"]
    bundle = with_started_head(prepared, prepared.another_model(), kept)
    _, logits = read_by_head(prepared, bundle)
    names = [prepared.task.labels[column] for column in logits.argmax(axis=1)]
    truth = [prepared.task.labels[one.labels] for one in prepared.features]
    pairs = [(name, label) for name, label in zip(names, truth, strict=True) if label != "tale"]
    assert np.mean([name == label for name, label in pairs]) > 0.9
    assert "tale" not in names  # a label without rows is never the answer


def test_the_start_is_the_same_every_time(tmp_path: Path) -> None:
    prepared = job(tmp_path, "bert")
    one, two = (started(prepared).model.classifier.weight for _ in range(2))
    assert torch.equal(one, two)


def test_a_random_start_and_a_stored_head_are_kept(tmp_path: Path) -> None:
    prepared = job(tmp_path, "bert", head={"start": "auto"})
    assert torch.equal(started(prepared).model.classifier.weight, prepared.another_model().model.classifier.weight)
    folder = fakes.save("bert", tmp_path / "stored", "classification", labels=tuple(sorted(KINDS)))
    prepared = job(tmp_path, "bert", model=str(folder), head={"start": "auto"})
    bundle = started(prepared)
    assert torch.equal(bundle.model.classifier.weight, prepared.another_model().model.classifier.weight)
    assert not any("logistic regression" in fact for fact in bundle.info.reconciled)
    prepared = job(tmp_path, "bert", model=str(folder), head={"start": "probe"})
    assert any("logistic regression" in fact for fact in started(prepared).info.reconciled)


def test_one_label_cannot_be_fitted(tmp_path: Path) -> None:
    prepared = job(tmp_path, "bert")
    same = [one for one in prepared.data.train.examples if one.target == "law"]
    bundle = with_started_head(prepared, prepared.another_model(), same)
    assert torch.equal(bundle.model.classifier.weight, prepared.another_model().model.classifier.weight)


def test_a_run_records_the_start(tmp_path: Path) -> None:
    record = fulltune.run(job(tmp_path, "bert").config, out=tmp_path / "runs")
    [fact] = [fact for fact in record.model.reconciled if "logistic regression" in fact]
    assert fact.startswith(
        "the head starts from a logistic regression on what the frozen model gives it, fitted on 36 rows"
    )


def test_only_classification_has_a_start() -> None:
    config = load_config({"model": "m", "task": "causal-lm", "data": {"train": "t"}, "head": {"start": "probe"}})
    with pytest.raises(ConfigError, match="probe for the task causal-lm") as caught:
        checked_task_and_method(config)
    assert caught.value.problems[0].field == "head.start"
