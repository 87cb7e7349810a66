"""Plain transformers on the saved folder gives the answers that were scored: every task, family and row."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from fulltune.config import load_config
from fulltune.models import save
from fulltune.models.bundle import Bundle
from fulltune.pipeline import job, model_loading
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example, Task

CAP = 6
TEXTS = ["The court shall be", "a great film", "Жил старик", "what is it ?", "law " * 60, "red, blue </s> green"]

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Saved:
    """A model as the report scores it, and the folder that a run leaves."""

    def __init__(self, kind: str, task: str, folder: Path, *, chat: str | None = None, **data: Any) -> None:
        model, tokenizer = fakes.make(kind, seed=3)
        with torch.no_grad():  # larger weights, so that the answers differ from each other
            for parameter in model.parameters():
                parameter.mul_(4)
        tokenizer.chat_template = chat
        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        self.folder = folder / "model"
        self.config = load_config(
            {
                "model": str(folder / "base"),
                "task": task,
                "data": {"train": str(folder / "rows.jsonl"), "eval": 0.5} | data,
                "evaluation": {"max_new_tokens": CAP, "batch_size": 3, "continuations": 99},
            }
        )

    def predictions(self, examples: list[Example]) -> list[Prediction]:
        """Write the folder and return the report's answers."""
        task, _ = job.checked_task_and_method(self.config)
        task = task.fit(examples, examples)
        bundle = model_loading.load_model(self.config, task, "runs", head=task.head)
        save.save_model(bundle, self.folder)
        self.task: Task = task
        self.bundle: Bundle = bundle
        return list(task.predictor(bundle, "tuned")(examples))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_continues_texts(kind: str, tmp_path: Path) -> None:
    saved = Saved(kind, "causal-lm", tmp_path)
    predictions = saved.predictions([Example(str(row), "", text) for row, text in enumerate(TEXTS)])
    plain = pipeline("text-generation", model=str(saved.folder), return_full_text=False)
    for prediction in predictions:
        [answer] = plain(prediction.values["opening"])
        assert answer["generated_text"] == prediction.output
    assert len({prediction.output for prediction in predictions}) > 2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("chat", [None, CHAT])
def test_a_decoder_completes_prompts(kind: str, chat: str | None, tmp_path: Path) -> None:
    saved = Saved(kind, "causal-lm", tmp_path, chat=chat)
    predictions = saved.predictions([Example(str(row), text, "yes") for row, text in enumerate(TEXTS[:4])])
    plain = pipeline("text-generation", model=str(saved.folder), return_full_text=False)
    for prediction in predictions:
        asked: Any = [{"role": "user", "content": prediction.input}] if chat else prediction.input
        [answer] = plain(asked)
        assert answer["generated_text"] == prediction.output
    tokenizer = AutoTokenizer.from_pretrained(saved.folder)
    [features] = saved.task.encode(Example("r", TEXTS[0], "yes"), saved.bundle)
    messages = [{"role": "user", "content": TEXTS[0]}]
    prompt = tokenizer(TEXTS[0]).input_ids
    if chat:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert features.input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
def test_text_to_text(kind: str, tmp_path: Path) -> None:
    saved = Saved(kind, "seq2seq", tmp_path, instruction="Rewrite.")
    predictions = saved.predictions([Example(str(row), text, "yes") for row, text in enumerate(TEXTS[:4])])
    tokenizer = AutoTokenizer.from_pretrained(saved.folder)
    is_decoder = kind in ("gpt2", "llama")
    auto: Any = AutoModelForCausalLM if is_decoder else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(saved.folder)
    for prediction in predictions:
        asked = f"Rewrite.\n\n{prediction.input}"
        if is_decoder:
            asked = f"Rewrite.\n\nInput: {prediction.input}\nOutput:"
        inputs = tokenizer(asked, truncation=True, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs)[0, inputs.input_ids.shape[1] if is_decoder else 0 :]
        assert tokenizer.decode(output, skip_special_tokens=True).strip() == prediction.output


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_long_sources_are_cut_where_the_report_cuts_them(kind: str, tmp_path: Path) -> None:
    saved = Saved(kind, "seq2seq", tmp_path, max_length=24)
    texts = [f"the court {row} shall be a great film of " + "law " * row for row in range(12)]
    predictions = saved.predictions([Example(str(row), text, "yes") for row, text in enumerate(texts)])
    tokenizer = AutoTokenizer.from_pretrained(saved.folder)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(saved.folder)
    for prediction in predictions:
        inputs = tokenizer(prediction.input, truncation=True, return_tensors="pt", return_token_type_ids=False)
        assert inputs.input_ids.shape[1] <= 24
        output = model.generate(**inputs)[0]
        assert tokenizer.decode(output, skip_special_tokens=True).strip() == prediction.output


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_text_to_sql(kind: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.sqlite") as database:
        database.execute("CREATE TABLE item (name TEXT, price INT)")
    saved = Saved(kind, "text2sql", tmp_path, databases=str(tmp_path))
    meta = {"db_id": "shop", "database": str(tmp_path / "shop.sqlite")}
    examples = [Example(str(row), text, "SELECT 1", meta) for row, text in enumerate(["a film?", "the law?"])]
    predictions = saved.predictions(examples)
    tokenizer = AutoTokenizer.from_pretrained(saved.folder)
    auto: Any = AutoModelForCausalLM if kind == "gpt2" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(saved.folder)
    for prediction in predictions:
        asked = f"Schema: {saved.task.schema('shop')}\n\nQuestion: {prediction.input}\nSQL:"  # type: ignore[attr-defined]
        inputs = tokenizer(asked, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs)[0, inputs.input_ids.shape[1] if kind == "gpt2" else 0 :]
        assert tokenizer.decode(output, skip_special_tokens=True).strip() == prediction.output.strip()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("several", [False, True])
def test_classification(kind: str, several: bool, tmp_path: Path) -> None:
    saved = Saved(kind, "classification", tmp_path, max_length=40)
    names = ("film", "law", "music")
    targets: list[Any] = [(name, names[0]) if several else name for name in names * 2]
    rows = [Example(str(row), text, target) for row, (text, target) in enumerate(zip(TEXTS, targets, strict=True))]
    predictions = saved.predictions(rows)
    plain = pipeline("text-classification", model=str(saved.folder), truncation=True, top_k=None)
    for prediction in predictions:
        scores = {found["label"]: found["score"] for found in plain([prediction.input])[0]}
        if several:
            assert {label for label, score in scores.items() if score > 0.5} == set(prediction.output)
            assert scores == pytest.approx(prediction.values["probabilities"], abs=6e-5)
        else:
            assert max(scores, key=scores.__getitem__) == prediction.output
            assert max(scores.values()) == pytest.approx(prediction.values["confidence"], abs=6e-5)
    tokenizer = AutoTokenizer.from_pretrained(saved.folder)
    for row in rows:
        [features] = saved.task.encode(row, saved.bundle)
        assert features.input_ids == tokenizer(row.input, truncation=True).input_ids
    model = AutoModelForSequenceClassification.from_pretrained(saved.folder)
    assert model.config.problem_type == ("multi_label_classification" if several else "single_label_classification")


def test_the_saved_settings_are_those_of_the_report(tmp_path: Path) -> None:
    saved = Saved("llama", "causal-lm", tmp_path)
    saved.predictions([Example("0", "", "the court")])
    stored = json.loads((saved.folder / "generation_config.json").read_text())
    assert (stored["max_new_tokens"], stored["do_sample"]) == (CAP, False)
