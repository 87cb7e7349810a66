"""classification: labels, heads, and zero-shot and few-shot predictions for each family."""

from __future__ import annotations

import fakes
import numpy as np
import pytest
import torch

from fulltune.config import Config
from fulltune.evaluation.prompt_use import prompt_uses, sentences
from fulltune.tasks.base import Example
from fulltune.tasks.classification import Classification

LABELS = ("film", "law")
ROWS = [
    Example("r:0", "the film is good", "film"),
    Example("r:1", "the party shall not", "law"),
    Example("r:2", "the court and the law of the state shall be good", "law"),
]
MULTI = [
    Example("r:0", "the film is good", ("film", "law")),
    Example("r:1", "the party", ()),
    Example("r:2", "court", ("law",)),
]


def make(rows: list[Example], **options: object) -> Classification:
    config = Config(
        model="m", task="classification", data={"train": "t.jsonl"}, evaluation={"batch_size": 2}, **options
    )
    task = Classification(config)
    task = task.fit(rows, rows)
    return task


def test_labels_are_those_of_train_and_eval_sorted() -> None:
    task = Classification(Config(model="m", task="classification", data={"train": "t"}))
    task = task.fit([Example("a", "x", "zebra")], [Example("b", "y", "ant")])
    assert task.labels == ("ant", "zebra")
    assert not task.multi_label


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_a_head_answers_with_softmax_of_its_logits(kind: str) -> None:
    task, bundle = make(ROWS), fakes.bundle(kind, "classification", labels=LABELS)
    predictions = list(task.predictor(bundle, "tuned")(ROWS))
    for example, prediction in zip(ROWS, predictions, strict=True):
        ids = torch.tensor([bundle.tokenizer(example.input).input_ids])
        with torch.no_grad():
            expected = bundle.model(input_ids=ids).logits[0].softmax(-1)
        assert prediction.id == example.id
        assert prediction.output == LABELS[int(expected.argmax())]
        assert prediction.values["confidence"] == pytest.approx(float(expected.max()), abs=6e-5)


def test_labels_above_one_half_are_predicted() -> None:
    task, bundle = make(MULTI), fakes.bundle("bert", "classification", labels=LABELS, multi_label=True)
    assert task.multi_label
    with torch.no_grad():
        bundle.model.classifier.weight.zero_()
        bundle.model.classifier.bias.copy_(torch.tensor([3.0, -3.0]))
    predictions = list(task.predictor(bundle, "tuned")(MULTI))
    assert {prediction.output for prediction in predictions} == {("film",)}
    assert predictions[0].values["probabilities"]["film"] == pytest.approx(0.95257, abs=1e-4)


def test_features_carry_an_index_or_a_vector() -> None:
    bundle = fakes.bundle("bert")
    assert [make(ROWS).encode(row, bundle)[0].labels for row in ROWS] == [0, 1, 1]
    assert [make(MULTI).encode(row, bundle)[0].labels for row in MULTI] == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]


def test_a_long_text_is_cut_and_keeps_its_closing_token() -> None:
    bundle = fakes.bundle("bert")
    config = Config(model="m", task="classification", data={"train": "t", "max_length": 8})
    task = Classification(config)
    task = task.fit(ROWS, ROWS)
    [item] = task.encode(Example("r", "good " * 50, "law"), bundle)
    assert len(item.input_ids) == 8
    assert item.input_ids[-1] == bundle.tokenizer.sep_token_id
    assert item.truncated == 52 - 8


@pytest.mark.filterwarnings("ignore:.*had no room for all")
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("rows", [ROWS, MULTI], ids=["single", "multi"])
def test_zero_and_few_shot_answer_every_row_with_known_labels(kind: str, rows: list[Example]) -> None:
    task, bundle = make(rows), fakes.bundle(kind)
    for system, shots in (("zero_shot", ()), ("few_shot", rows)):
        predictions = list(task.predictor(bundle, system, shots)(rows))
        assert [prediction.id for prediction in predictions] == [row.id for row in rows]
        for prediction in predictions:
            chosen = (prediction.output,) if isinstance(prediction.output, str) else prediction.output
            assert set(chosen) <= set(LABELS)


def test_cloze_is_the_mean_log_probability_of_the_label_words() -> None:
    bundle = fakes.bundle("bert")
    rows = [Example("r", "the court", "good law"), Example("s", "the film", "film")]
    task = make(rows)
    [prediction, _] = task.predictor(bundle, "zero_shot")(rows)
    tokenizer, scores = bundle.tokenizer, []
    for label in task.labels:
        word = tokenizer(label, add_special_tokens=False).input_ids
        text = f"the court topic: {'[MASK] ' * len(word)}"
        ids = tokenizer(text).input_ids
        with torch.no_grad():
            logits = bundle.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        places = [index for index, token in enumerate(ids) if token == tokenizer.mask_token_id]
        scores.append(np.mean([float(logits[place, token]) for place, token in zip(places, word, strict=True)]))
    expected = np.exp(scores) / np.exp(scores).sum()
    assert prediction.output == task.labels[int(np.argmax(scores))]
    assert prediction.values["confidence"] == pytest.approx(expected.max(), abs=1e-4)


def test_the_cloze_of_a_long_text_keeps_its_masks() -> None:
    bundle, task = fakes.bundle("bert"), make([Example("r", "good " * 300, "law"), Example("s", "the film", "film")])
    predictions = list(task.predictor(bundle, "zero_shot")([Example("r", "good " * 300, "law")]))
    assert predictions[0].output in task.labels


def test_label_likelihood_is_the_mean_over_the_labels_tokens() -> None:
    bundle, task = fakes.bundle("gpt2"), make(ROWS)
    prediction = next(task.predictor(bundle, "zero_shot")(ROWS[:1]))
    prompt = "Labels: film, law.\n\nText: the film is good\nLabel:"
    context = bundle.tokenizer(prompt).input_ids
    scores = []
    for label in LABELS:
        answer = [*bundle.tokenizer(f" {label}").input_ids, bundle.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = bundle.model(input_ids=torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
        scores.append(-float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer))))
    assert prediction.output == LABELS[int(np.argmax(scores))]


def test_few_shot_encoders_take_the_nearest_class_mean() -> None:
    bundle, task = fakes.bundle("bert"), make(ROWS)
    # Each row is itself a shot, alone in its class or with one other: a shot alone in its class is its own mean.
    predictions = list(task.predictor(bundle, "few_shot", ROWS[:2])(ROWS[:2]))
    assert [prediction.output for prediction in predictions] == ["film", "law"]


def test_a_small_window_gets_fewer_shots_and_each_row_records_how_many() -> None:
    task, bundle = make(ROWS), fakes.bundle("gpt2")
    long = [Example(row.id, row.input * 3, row.target) for row in ROWS]
    found = list(task.predictor(bundle, "few_shot", long)(ROWS))
    assert all(0 <= row.values["shots"] < 3 for row in found)
    uses = prompt_uses(found)
    assert sum(uses["few_shot"].shots.values()) == 3
    [sentence] = sentences(uses, shots=3)
    assert sentence.startswith("few_shot: 3 of 3 prompts had no room for all 3 shots")


def test_balanced_class_weights_equal_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    task = make(ROWS, train={"class_weights": "balanced"})
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=[row.target for row in ROWS])
    assert task.class_weights(ROWS) == pytest.approx(expected.tolist())
    assert make(ROWS).class_weights(ROWS) is None


def test_the_head_of_several_labels_starts_from_their_frequencies() -> None:
    task, bundle = make(MULTI), fakes.bundle("bert", "classification", labels=LABELS, multi_label=True)
    task.begin(bundle, MULTI)
    assert bundle.model.classifier.bias.sigmoid().tolist() == pytest.approx([1 / 3, 2 / 3], abs=1e-6)
    single = fakes.bundle("bert", "classification", labels=LABELS)
    before = single.model.classifier.bias.clone()
    make(ROWS).begin(single, ROWS)
    assert torch.equal(single.model.classifier.bias, before)
    task.begin(fakes.bundle("gpt2", "classification", labels=LABELS, multi_label=True), MULTI)  # a head without bias


def test_details_hold_what_the_report_draws() -> None:
    task, bundle = make(ROWS), fakes.bundle("bert", "classification", labels=LABELS)
    details = task.details(list(task.predictor(bundle, "tuned")(ROWS)))
    assert details["labels"] == list(LABELS)
    assert sum(map(sum, details["confusion"]["matrix"])) == len(ROWS)
    assert [row["support"] for row in details["per_class"]] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "counts", "words"),
    [
        (
            "gpt2",
            {"unlisted_labels": 38, "cut_labels": 1},
            [
                "zero_shot: 38 labels have no room in the prompts: scored without being listed.",
                "zero_shot: 1 label name is too long for the model: only the beginning is scored.",
            ],
        ),
        (
            "bert",
            {"cut_labels": 1},
            ["zero_shot: 1 label name is too long for the model: only the beginning is scored."],
        ),
    ],
)
def test_labels_that_do_not_fit_into_prompts_are_counted(kind: str, counts: dict[str, int], words: list[str]) -> None:
    long = [f"topic {n:02}" for n in range(39)] + ["village " * 60]
    rows = [Example(str(n), "the film", label) for n, label in enumerate(long)]
    task = make(rows)
    predictions = list(task.predictor(fakes.bundle(kind), "zero_shot")(rows[:2]))
    uses = prompt_uses(predictions)
    use = uses["zero_shot"].model_dump()
    assert {name: use[name] for name in ("unlisted_labels", "cut_labels") if use[name]} == counts
    assert [text for text in sentences(uses) if "label" in text] == words
