"""The rows of a stored classification head are matched to the labels by name."""

from __future__ import annotations

import json
from pathlib import Path

import fakes
import pytest
import torch

import fulltune
from fulltune.models.bundle import Bundle
from fulltune.models.load import load

STORED = ("negative", "neutral", "positive")
KINDS = ["bert", "gpt2", "llama", "t5", "bart"]


def logits(bundle: Bundle, text: str = "the court is good") -> torch.Tensor:
    with torch.no_grad():
        return bundle.model(**bundle.tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [("positive", "negative", "neutral"), ("Positive", "NEGATIVE", "neutral ")])
def test_rows_follow_the_order_of_the_labels(kind: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    folder = str(fakes.save(kind, tmp_path, "classification", labels=STORED))
    before, after = load(folder, "classification"), load(folder, "classification", labels=labels)
    assert torch.allclose(logits(after), logits(before)[[2, 0, 1]], atol=1e-6)
    assert list(after.model.config.id2label.values()) == list(labels)
    assert any("put in the order of the labels" in fact for fact in after.info.reconciled)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_known_labels_are_kept_and_others_are_initialized(kind: str, tmp_path: Path) -> None:
    folder = str(fakes.save(kind, tmp_path, "classification", labels=STORED))
    labels = ("mixed", "negative", "odd", "positive")
    before, after = load(folder, "classification"), load(folder, "classification", labels=labels)
    assert torch.allclose(logits(after)[[1, 3]], logits(before)[[0, 2]], atol=1e-6)
    assert after.model.config.num_labels == 4 == len(logits(after))
    assert getattr(after.model, "num_labels", 4) == 4
    assert torch.equal(logits(load(folder, "classification", labels=labels)), logits(after))
    [fact] = [fact for fact in after.info.reconciled if "classification head" in fact]
    assert "rows for 'negative', 'positive' were kept, rows for 'mixed', 'odd' are new" in fact
    loss = after.model(input_ids=torch.tensor([[5, 1]]), labels=torch.tensor([3])).loss if kind == "bert" else None
    assert loss is None or torch.isfinite(loss)


@pytest.mark.parametrize("architectures", [None, ["BertModel"], ["BertForTokenClassification"]])
def test_rows_of_a_head_for_something_else_are_not_taken_for_classes(
    architectures: list[str] | None, tmp_path: Path
) -> None:
    folder = fakes.save("bert", tmp_path, "classification", labels=STORED)
    before = load(str(folder), "classification")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    after = load(str(folder), "classification", labels=("O", "PER", "LOC"))
    assert not torch.allclose(logits(after), logits(before), atol=1e-3)
    assert torch.equal(logits(load(str(folder), "classification", labels=("O", "PER", "LOC"))), logits(after))
    assert any(
        "does not say that it classifies texts: a new head was created" in fact for fact in after.info.reconciled
    )


def test_names_that_differ_only_in_case_keep_their_own_rows(tmp_path: Path) -> None:
    folder = str(fakes.save("bert", tmp_path, "classification", labels=("Spam", "spam", "ham")))
    before, after = load(folder, "classification"), load(folder, "classification", labels=("HAM", "spam", "Spam"))
    assert torch.allclose(logits(after), logits(before)[[2, 1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("stored", "labels", "unclear"),
    [
        (("Spam", "spam", "ham"), ("SPAM", "spam", "ham"), "'SPAM'"),
        (("SPAM", "other", "ham"), ("Spam", "spam", "ham"), "'Spam', 'spam'"),
    ],
)
def test_names_without_a_clear_row_get_new_rows(
    stored: tuple[str, ...], labels: tuple[str, ...], unclear: str, tmp_path: Path
) -> None:
    folder = str(fakes.save("bert", tmp_path, "classification", labels=stored))
    before, after = (load(folder, "classification", labels=names) for names in ((), labels))
    assert torch.equal(after.model.classifier.weight[2], before.model.classifier.weight[2])
    assert not any(torch.equal(after.model.classifier.weight[0], row) for row in before.model.classifier.weight)
    [fact] = [fact for fact in after.info.reconciled if "classification head" in fact]
    assert f"rows for {unclear} are new" in fact
    assert f"({unclear}: the same as other names except for case" in fact


@pytest.mark.parametrize("labels", [("cat", "dog", "fox"), ("cat", "dog")])
def test_other_labels_get_a_new_head(labels: tuple[str, ...], tmp_path: Path) -> None:
    """With the same number of labels but other names the stored rows would mean something else."""
    folder = str(fakes.save("bert", tmp_path, "classification", labels=STORED))
    stored = load(folder, "classification").model.classifier.weight
    one, two, other = (load(folder, "classification", labels=labels, seed=seed) for seed in (1, 1, 2))
    assert len(one.model.classifier.weight) == len(labels)
    assert torch.equal(one.model.classifier.weight, two.model.classifier.weight)
    assert not torch.equal(one.model.classifier.weight, other.model.classifier.weight)
    assert not torch.equal(one.model.classifier.weight, stored[: len(labels)])
    assert any("a new head was created for 'cat', 'dog'" in fact for fact in one.info.reconciled)


def test_the_same_labels_are_left_alone(tmp_path: Path) -> None:
    folder = str(fakes.save("bert", tmp_path, "classification", labels=STORED))
    assert load(folder, "classification", labels=STORED).info.reconciled == ()


def test_a_run_reports_how_the_head_was_made(tmp_path: Path) -> None:
    folder = fakes.save("bert", tmp_path / "base", "classification", labels=("yes", "no"))
    rows = [{"text": f"the {word} number {row}", "label": word} for row in range(9) for word in ("yes", "no")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = fulltune.run(
        model=str(folder),
        task="classification",
        data={"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl"), "allow_leaks": True},
        train={"max_steps": 1},
        guards={"forgetting": None},
        evaluation={"resamples": 100},
        out=tmp_path / "runs",
    )
    assert any("put in the order of the labels, 'no', 'yes'" in fact for fact in record.model.reconciled)
