from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fulltune.metrics.memorization import memorization
from fulltune.records.run import Prediction
from fulltune.report.task import plain_details

TALE = "Once upon a time there lived an old man and an old woman by the very blue sea."


def prediction(output: Any, reference: Any = "", system: str = "tuned", row: str = "1") -> Prediction:
    return Prediction(system=system, id=row, input="", reference=reference, output=output)


def test_recited_text_is_counted_for_answers_references_and_base() -> None:
    predictions = [
        prediction(
            "once upon a time, there lived an OLD man", "In a certain kingdom, in a certain state, there was a tsar"
        ),
        prediction("the king of the hill said nothing at all", system="zero_shot"),
        prediction(TALE, system="few_shot"),
        prediction("short"),
    ]
    found = memorization(predictions, [TALE, "another text"])
    assert found == {
        "words": 8,
        "tuned": {"share": 1.0, "copied": 2, "runs": 2},
        "references": {"share": 0.0, "copied": 0, "runs": 5},
        "zero_shot": {"share": 0.0, "copied": 0, "runs": 2},
    }
    assert plain_details({"memorization": found}) == [
        ("Verbatim from train", "100% of 2 sequences of 8 words (references 0%, zero-shot 0%)")
    ]


def test_a_run_never_crosses_two_rows_of_train() -> None:
    first, second = "one two three four five", "six seven eight nine ten"
    found = memorization([prediction(f"{first} {second}")], [first, second])
    assert found is not None
    assert found["tuned"]["copied"] == 0


def test_other_scripts_have_words_too() -> None:
    text = "Жили-были старик со старухой у самого синего моря"
    found = memorization([prediction(text)], [text.upper()])
    assert found is not None
    assert found["tuned"]["share"] == 1.0


def test_answers_that_are_too_short_or_not_text_do_not_count() -> None:
    assert memorization([prediction("yes"), prediction(("a", "b"))], [TALE]) is None
    assert memorization([], [TALE]) is None


@given(
    outputs=st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=1, max_size=4),
    train=st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=4),
    run=st.integers(1, 4),
)
def test_the_fraction_equals_that_of_a_substring_search(
    outputs: list[list[str]], train: list[list[str]], run: int
) -> None:
    texts = [f" {' '.join(row)} " for row in train]
    grams = [f" {' '.join(row[i : i + run])} " for row in outputs for i in range(len(row) - run + 1)]
    found = memorization([prediction(" ".join(row)) for row in outputs], [" ".join(row) for row in train], run)
    if not grams:
        assert found is None
    else:
        assert found is not None
        assert found["tuned"]["copied"] == sum(any(gram in text for text in texts) for gram in grams)
        assert found["tuned"]["runs"] == len(grams)


def test_recitation_is_in_the_record_and_the_report(tmp_path: Path) -> None:
    import json

    import fakes

    import fulltune

    rows = [{"source": f"say {row}", "target": "ha " * 12} for row in range(8)]
    other = [{"source": "say it", "target": "this is a quite different end of the tale"}]
    for name, chosen in (("train", rows), ("eval", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    fakes.save("t5", tmp_path / "t5")
    record = fulltune.run(
        {
            "model": str(tmp_path / "t5"),
            "task": "seq2seq",
            "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")},
            "train": {"max_steps": 60, "batch_size": 8, "learning_rate": 1e-2, "evaluations": 0},
            "regularize": {"dropout": 0.0},
            "guards": {"forgetting": None},
            "baselines": {"few_shot": 1},
            "evaluation": {"resamples": 100, "max_new_tokens": 36},
        },
        out=tmp_path / "runs",
    )
    found = record.details["memorization"]
    assert found["tuned"]["share"] == 1.0
    assert found["tuned"]["runs"] > 3
    assert found["references"] == {"share": 0.0, "copied": 0, "runs": 2}
    assert "Verbatim from train" in (tmp_path / "runs" / record.run_id / "report.html").read_text()
