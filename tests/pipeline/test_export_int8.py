"""8-bit products: smaller, close to the original, and in float32 where 8 bits would change the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from answering import Run, sentence

import fulltune
from fulltune.errors import ModelError
from fulltune.records.export import Export

pytest.importorskip("onnxscript", reason="needs fulltune[export]")

LABELS = ("film", "law", "tale")

#: A layer whose input has one feature a thousand times as large as the others.
OUTLIER = "bert.encoder.layer.0.attention.output.dense"


@pytest.fixture(scope="module")
def outlier(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a model that a single scale of activations breaks, with rows that it labels correctly."""
    place = tmp_path_factory.mktemp("outlier")
    bundle = fakes.bundle("bert", head="classification", labels=LABELS)
    model: Any = bundle.model
    del model.bert.encoder.layer[1]  # which halves the time of the export
    model.config.num_hidden_layers = 1
    layer = model.get_submodule(OUTLIER.removesuffix(".output.dense"))
    with torch.no_grad():
        layer.self.value.weight[0] *= 1000  # both changes together change no output
        layer.self.value.bias[0] *= 1000
        layer.output.dense.weight[:, 0] /= 1000
    texts = [f"{sentence(index)} {sentence(index * 7 + 3)}" for index in range(64)]

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(bundle.tokenizer(text, return_tensors="pt").input_ids).logits for text in texts])

    with torch.no_grad():
        model.classifier.bias -= logits().mean(dim=0)  # so that the labels differ from text to text
    model.save_pretrained(place / "model")
    bundle.tokenizer.save_pretrained(place / "model")
    labels = [LABELS[index] for index in logits().argmax(dim=1).tolist()]
    assert len(set(labels)) > 1
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    for name, part in (("train", rows[:40]), ("eval", rows[40:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = {
        "model": str(place / "model"),
        "task": "classification",
        "data": {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl"), "label_names": list(LABELS)},
        "evaluation": {"resamples": 100},
    }
    return fulltune.export(
        place / "model", place / "int8", format="onnx-int8", config=config, out=place, force="a test of the choice"
    )


def test_products_that_8_bits_would_break_stay_in_float32(outlier: Export) -> None:
    found = outlier.quantization
    assert found is not None
    assert found.products == 8
    assert found.chosen_on.endswith("rows of train")
    errors = [layer.error for layer in found.kept]
    assert errors == sorted(errors, reverse=True)
    assert next(layer.layer for layer in found.kept if "encoder" in layer.layer) == OUTLIER
    counts, means = zip(*found.attempts, strict=True)
    assert counts[0] == 0 < len(found.kept) == counts[-1]
    assert means[-1] < means[0] / 2
    assert outlier.parent_scores["accuracy"].value == 1.0


def test_most_products_are_8_bit_integers(outlier: Export) -> None:
    onnx: Any = pytest.importorskip("onnx")
    graph = onnx.load(f"{outlier.artifact}/model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert outlier.quantization is not None
    assert kinds.count("MatMulInteger") == outlier.quantization.products - len(outlier.quantization.kept)
    assert {path.name for path in Path(outlier.artifact).glob("*.onnx*")} == {"model.onnx"}


def test_answers_do_not_depend_on_the_batch(outlier: Export) -> None:
    model = fulltune.load(outlier.artifact)
    texts = [sentence(index) for index in range(9)]
    assert model(texts) == [model(text) for text in texts]
    assert fulltune.evaluate(outlier.artifact).scores == outlier.scores


def test_only_classifiers_are_quantized(tales: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"causal-lm has no exporter to onnx-int8.*gguf-q8_0"):
        fulltune.export(tales.record, tmp_path / "int8", format="onnx-int8")
    assert list(tmp_path.iterdir()) == []
