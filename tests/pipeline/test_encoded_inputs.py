"""Training reads the ids that the trained model reads in evaluation, whatever the head of the base."""

from __future__ import annotations

import json
from pathlib import Path

import fakes
import pytest
from transformers import PreTrainedTokenizerFast

from fulltune.config import load_config
from fulltune.pipeline.job import prepare_job


def closed_llama() -> PreTrainedTokenizerFast:
    """Return a tokenizer that ends every text."""
    return fakes.byte_tokenizer(
        ["<s>", "</s>"], "<s> $A </s>", bos_token="<s>", eos_token="</s>", unk_token="</s>", pad_token="</s>"
    )


def open_t5() -> PreTrainedTokenizerFast:
    """Return a tokenizer that does not end texts, although the classification head reads the state at the end."""
    return fakes.byte_tokenizer(["<pad>", "</s>", "<unk>"], pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [
        ("llama", closed_llama()),
        ("llama", fakes.llama_tokenizer()),
        ("gpt2", fakes.gpt2_tokenizer()),
        ("t5", open_t5()),
        ("t5", fakes.t5_tokenizer()),
        ("bart", fakes.bart_tokenizer()),
        ("bert", fakes.bert_tokenizer()),
    ],
)
def test_a_classifier_is_trained_on_the_ids_that_it_reads(
    kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = ["the court is great", "a bad </s> film", "law " * 60, "red, blue"] * 2
    rows = [{"text": f"{text} {row}", "label": "ab"[row % 2]} for row, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base = str(fakes.save(kind, tmp_path / "base", tokenizer=tokenizer))
    data = {"train": str(tmp_path / "rows.jsonl"), "eval": 0.5, "max_length": 40}
    job = prepare_job(load_config({"model": base, "task": "classification", "data": data}), tmp_path / "runs")
    trained = job.model_to_train()
    assert trained.head == "classification"
    expected = [job.task.encode(example, trained)[0].input_ids for example in job.data.train.examples]
    assert [features.input_ids for features in job.features] == expected
    if kind == "t5":
        assert all(ids[-1] == tokenizer.eos_token_id and ids.count(ids[-1]) == 1 for ids in expected)
