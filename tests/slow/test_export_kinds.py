"""ONNX graphs of further kinds of models: several labels, classifiers of every family, translators of several types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from answering import sentence
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
)

import fulltune
from fulltune.records.export import Export

pytest.importorskip("onnxscript", reason="needs fulltune[export]")

pytestmark = pytest.mark.slow

LABELS = ("no", "yes")

TRANSLATORS: dict[str, tuple[Any, Any]] = {
    "mbart": (MBartConfig, MBartForConditionalGeneration),
    "marian": (MarianConfig, MarianMTModel),
    "m2m_100": (M2M100Config, M2M100ForConditionalGeneration),
    "pegasus": (PegasusConfig, PegasusForConditionalGeneration),
}


def exported(folder: Path, task: str, rows: list[dict[str, Any]], form: str = "onnx") -> Export:
    """Export the model of a folder, compared on rows."""
    data = folder.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"max_new_tokens": 4, "resamples": 100}
    return fulltune.export(
        folder, folder.parent / form, format=form, data=data, task=task, evaluation=settings, out=folder.parent
    )


def translator(kind: str, folder: Path) -> Path:
    """Save a model of a type that is built like BART."""
    tokenizer = fakes.bart_tokenizer()
    config, model = TRANSLATORS[kind]
    sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in SIZES.items()}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos")}
    ids |= {"decoder_start_token_id": ids["eos_token_id"], "forced_eos_token_id": ids["eos_token_id"]}
    torch.manual_seed(0)
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": fakes.WINDOW, "d_model": fakes.HIDDEN}
    model(config(**options, **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SIZES = {"layers": 2, "attention_heads": 2, "ffn_dim": 2 * fakes.HIDDEN}


def check(export: Export) -> None:
    assert export.equal_answers == export.rows > 0
    assert export.logits.relative < 1e-5
    assert export.verdict in ("not worse", "within the margin")


@pytest.mark.parametrize("kind", ["bart", *TRANSLATORS])
def test_translators(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fakes.save("bart", folder) if kind == "bart" else translator(kind, folder)
    check(exported(folder, "seq2seq", [{"source": sentence(n), "target": "yes"} for n in range(6)]))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "t5"])
def test_classifiers_of_every_family(kind: str, tmp_path: Path) -> None:
    folder = fakes.save(kind, tmp_path / "model", "classification", labels=LABELS)
    check(exported(folder, "classification", [{"text": sentence(n), "label": LABELS[n % 2]} for n in range(8)]))


@pytest.mark.parametrize("form", ["onnx", "onnx-int8"])
def test_several_labels(form: str, tmp_path: Path) -> None:
    folder = fakes.save("bert", tmp_path / "model", "classification", labels=LABELS, multi_label=True)
    rows = [{"text": sentence(n), "labels": [name for name in LABELS if n * len(name) % 3]} for n in range(8)]
    export = exported(folder, "classification", rows, form)
    assert export.multi_label
    assert export.equal_answers == export.rows == 8
    assert export.logits.relative < (1e-5 if form == "onnx" else 0.05)
