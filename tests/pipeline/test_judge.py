"""``fulltune.Judge`` scores models before and after a training by any tool, and leaves them as they were."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
import transformers
from answering import Run

import fulltune
from fulltune import ConfigError, DataError, ModelError
from fulltune.pipeline.judge import Judged
from fulltune.records.verdict import PairVerdict

WORDS = {"no": "the fox", "yes": "the king"}
ROWS = [{"text": f"{WORDS[label]} number {n}", "label": label} for n in range(20) for label in ("no", "yes")]


@pytest.fixture(scope="module")
def judge() -> fulltune.Judge:
    return fulltune.Judge(ROWS, "classification", progress=False)


def trained(model: Any, tokenizer: Any, folder: Path) -> None:
    """Train a classifier with the trainer of transformers."""
    ids = model.config.label2id
    data = [{"input_ids": tokenizer(row["text"]).input_ids, "labels": ids[row["label"]]} for row in ROWS]
    args = fakes.arguments(folder, per_device_train_batch_size=8, num_train_epochs=6, learning_rate=3e-3)
    transformers.Trainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train()


def test_a_training_by_transformers_is_judged(judge: fulltune.Judge, tmp_path: Path) -> None:
    model, tokenizer = fakes.make("bert", "classification")
    before = judge(model, tokenizer)
    trained(model, tokenizer, tmp_path / "out")
    after = judge(model, tokenizer)
    found = judge.verdict(before, after, require="improved")
    assert (found.verdict, found.metric, found.n, found.passed) == ("improved", "macro_f1", 40, True)
    assert found.a.value == before.value
    assert found.b.value == after.value == 1.0
    assert found.headline.startswith("after is better than before in macro-F1 by ")
    assert repr(after) == f"<macro_f1 1 [{after.scores['macro_f1'].low:.4g}, 1] on 40 rows>"

    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    assert judge(tmp_path / "tuned").answers.rows == after.answers.rows

    files = [before.save(tmp_path / "before.jsonl"), after.save(tmp_path / "after.jsonl")]
    assert judge.verdict(*files).difference == found.difference
    assert fulltune.verdict(*files, metric="accuracy").verdict == "improved"


def test_the_answers_are_those_of_plain_transformers(judge: fulltune.Judge) -> None:
    model, tokenizer = fakes.make("bert", "classification")
    rows = judge(model, tokenizer).answers.rows
    with torch.no_grad():
        chosen = [int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax()) for row in ROWS]
    assert [row.output for row in rows] == [model.config.id2label[index] for index in chosen]


def settings_of(model: Any) -> list[Any]:
    generation = getattr(model, "generation_config", None)
    return [model.config.to_dict(), generation and generation.to_dict()]


@pytest.mark.parametrize(("kind", "head"), [("bert", "classification"), ("gpt2", "lm"), ("gpt2", "classification")])
def test_a_model_is_left_as_it_was(kind: str, head: str) -> None:
    task = "classification" if head == "classification" else "causal-lm"
    model, tokenizer = fakes.make(kind, head)
    tokenizer.pad_token = None if kind == "gpt2" else tokenizer.pad_token
    model.config.pad_token_id = None if kind == "gpt2" else model.config.pad_token_id
    model.train()
    next(iter(model.children())).eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    settings = settings_of(model)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index, union-attr]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]

    fulltune.Judge(ROWS, task, progress=False)(model, tokenizer)

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert settings_of(model) == settings
    assert (tokenizer.pad_token is None) == (kind == "gpt2")
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index, union-attr]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_a_language_model_is_scored_in_bits_per_byte(tmp_path: Path) -> None:
    model, tokenizer = fakes.make("gpt2")
    judge = fulltune.Judge([{"text": row["text"]} for row in ROWS], "causal-lm", progress=False)
    before = judge(model, tokenizer)
    fakes.save("gpt2", tmp_path / "base")
    named = judge(str(tmp_path / "base"))
    assert before.metric == "bits_per_byte"
    assert named.value == pytest.approx(before.value, rel=1e-6)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value += 0.3 * torch.randn_like(value) * ("wte" in name)
    after = judge(model, tokenizer)
    assert judge.verdict(before, after).verdict == ("worse" if after.value > before.value else "improved")


def test_summaries_are_scored_by_a_model_and_by_a_function() -> None:
    rows = [{"source": f"{row['text']} number", "target": row["text"]} for row in ROWS[:8]]
    judge = fulltune.Judge(rows, "seq2seq", evaluation={"max_new_tokens": 4}, progress=False)
    model, tokenizer = fakes.make("t5")
    before = judge(model, tokenizer)
    after = judge(lambda texts: [text.removesuffix(" number") for text in texts])
    assert after.scores["exact_match"].value == 1.0
    assert judge.verdict(before, after).b.value == after.value == 1.0


def test_a_function_of_any_tool_is_scored(judge: fulltune.Judge) -> None:
    before = judge(lambda texts: ["no"] * len(texts))
    after = judge(lambda texts: ["yes" if "king" in text else "no" for text in texts])
    assert before.value == pytest.approx(1 / 3)  # F1 of 2/3 and of 0
    assert before.scores["accuracy"].value == 0.5
    assert judge.verdict(before, after).verdict == "improved"
    assert judge.verdict(after, before, margin=0.05).not_worse.verdict == "cannot tell"  # type: ignore[union-attr]


def test_a_function_may_answer_with_unknown_labels_and_lists() -> None:
    judge = fulltune.Judge(ROWS, "classification", progress=False)
    assert judge(lambda texts: ["maybe"] * len(texts)).scores["accuracy"].value == 0.0
    rows = [{"text": row["text"], "labels": [row["label"], "any"]} for row in ROWS]
    several = fulltune.Judge(rows, "classification", progress=False)
    right = several(lambda texts: [["yes" if "king" in text else "no", "any"] for text in texts])
    assert right.value == 1.0


def test_the_options_of_a_judge_hold_for_its_verdicts() -> None:
    rows = [{"sentence": row["text"], "topic": row["label"], "source_id": n // 2} for n, row in enumerate(ROWS)]
    judge = fulltune.Judge(
        rows,
        "classification",
        text="sentence",
        label="topic",
        group="source_id",
        evaluation={"min_effect": 0.9},
        progress=False,
    )
    before = judge(lambda texts: ["no"] * len(texts))
    after = judge(lambda texts: ["yes" if "king" in text else "no" for text in texts])
    found = judge.verdict(before, after)
    assert (found.groups, found.verdict, found.min_effect) == (20, "no detectable change", 0.9)
    assert judge.verdict(before, after, min_effect=0.01).verdict == "improved"


# ---- Labels ----


def numbered(*labels: str) -> tuple[Any, Any]:
    model, tokenizer = fakes.make("bert", "classification", labels=labels or ("LABEL_0", "LABEL_1"))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    return model, tokenizer


def test_numbers_are_places_of_the_logits() -> None:
    rows = [{"text": row["text"], "label": int(row["label"] == "yes")} for row in ROWS]
    judge = fulltune.Judge(rows, "classification", progress=False)
    for labels in ((), ("bad", "good")):
        assert {row.output for row in judge(*numbered(*labels)).answers.rows} == {"1"}


def test_classes_without_names_need_label_names(tmp_path: Path) -> None:
    model, tokenizer = numbered()
    with pytest.raises(DataError) as raised:
        fulltune.Judge(ROWS, "classification", progress=False)(model, tokenizer)
    assert (
        "the model has 2 classes without names (LABEL_0, …); expected the names of its classes, such as 'no', 'yes'"
        in (str(raised.value))
    )
    assert "set label_names to the labels in the order of the logits".capitalize() in str(raised.value)
    judge = fulltune.Judge(ROWS, "classification", label_names=["yes", "no"], progress=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for judged in (judge(model, tokenizer), judge(tmp_path)):
        assert {row.output for row in judged.answers.rows} == {"no"}


def test_a_model_may_have_more_labels_than_the_rows(judge: fulltune.Judge, tmp_path: Path) -> None:
    model, tokenizer = fakes.make("bert", "classification", labels=("other", "yes", "no"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert judge(model, tokenizer).answers.labels == judge(tmp_path).answers.labels == ("other", "yes", "no")


def test_a_base_model_without_a_head_is_asked_zero_shot(judge: fulltune.Judge) -> None:
    assert {row.output for row in judge(*fakes.make("gpt2")).answers.rows} <= {"no", "yes"}


# ---- Errors ----


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        pytest.param(lambda: (fakes.make("bert", "classification")[0], None), ModelError, "no tokenizer", id="none"),
        pytest.param(lambda: (torch.nn.Linear(2, 2), None), ModelError, "torch.nn.modules.linear.Linear", id="module"),
        pytest.param(lambda: (lambda texts: ["no"], None), DataError, "1 answers; expected 40, one per", id="count"),
        pytest.param(
            lambda: fakes.make("bert", "classification", labels=("a", "b")),
            DataError,
            "unknown to the model",
            id="labels",
        ),
    ],
)
def test_what_cannot_be_judged_is_reported(judge: fulltune.Judge, make: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind) as raised:
        judge(*make())
    assert message in str(raised.value)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(judge: fulltune.Judge) -> None:
    model, tokenizer = fakes.make("bert", "classification")
    tokenizer.add_tokens(["new", "words"])
    with pytest.raises(ModelError, match="resize_token_embeddings"):
        judge(model, tokenizer)


def test_tasks_and_models_have_to_fit() -> None:
    judge = fulltune.Judge([{"text": "the fox"}], "causal-lm", progress=False)
    with pytest.raises(ConfigError, match="a model with a classification head for the task causal-lm"):
        judge(*fakes.make("gpt2", "classification"))
    with pytest.raises(ModelError, match="encoder family"):
        judge(*fakes.make("bert"))
    with pytest.raises(ConfigError, match="needs more than answers"):
        judge(lambda texts: texts)


def test_options_are_checked_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        fulltune.Judge(ROWS, "classification", texts="text", evaluation={"min_effects": 0.1})
    assert "data.texts" in str(raised.value)
    assert "evaluation.min_effects" in str(raised.value)


def test_answers_to_other_rows_are_not_compared(judge: fulltune.Judge) -> None:
    other = fulltune.Judge(ROWS[:10], "classification", progress=False)

    def answer(texts: list[str]) -> list[str]:
        return ["no"] * len(texts)

    assert isinstance(judge(answer), Judged)
    with pytest.raises(DataError, match="no answer here"):
        judge.verdict(judge(answer), other(answer))


def test_a_verdict_on_a_run_detects_what_its_report_says(classes: Run) -> None:
    run = classes.record.folder
    found = fulltune.verdict(f"{run.name}#tfidf", run.name, out=run.parent, resamples=100)
    recorded = classes.record.comparison["tuned vs tfidf"]

    assert isinstance(found, PairVerdict)
    assert (found.n, found.smallest_detectable) == (recorded.n, pytest.approx(recorded.smallest_detectable))
