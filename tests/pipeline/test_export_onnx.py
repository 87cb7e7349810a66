"""ONNX graphs: the logits and answers of the original, through fulltune's commands and through plain onnxruntime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answering import Run
from serving import server_of, site

import fulltune
from fulltune.errors import MissingDependencyError, ModelError
from fulltune.models import onnx_model
from fulltune.models.cache_names import cache_of
from fulltune.pipeline.export import graphs
from fulltune.records.export import Export

pytest.importorskip("onnxscript", reason="needs fulltune[export]")

#: Answers a text with onnxruntime and the tokenizer alone; neither torch nor fulltune is loaded.
PLAIN = """
import json, sys
import numpy as np, onnxruntime
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/model.onnx")
encoded = tokenizer(sys.argv[2], return_tensors="np")
[logits] = session.run(["logits"], {one.name: encoded[one.name] for one in session.get_inputs()})
names = json.load(open(f"{sys.argv[1]}/config.json"))["id2label"]
print(names[str(int(np.argmax(logits)))], "fulltune" in sys.modules)
"""


def exported(run: Run, factory: pytest.TempPathFactory, form: str = "onnx") -> Export:
    return fulltune.export(run.record, factory.mktemp("exported") / form, format=form)


@pytest.fixture(scope="module")
def classifier(classes: Run, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return exported(classes, tmp_path_factory)


@pytest.fixture(scope="module")
def decoder(tales: Run, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return exported(tales, tmp_path_factory)


@pytest.fixture(scope="module")
def translator(queries: Run, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return exported(queries, tmp_path_factory)


def test_a_classifier_gives_the_same_answers(classifier: Export, classes: Run) -> None:
    assert classifier.logits.relative < 1e-5
    assert (classifier.rows, classifier.equal_answers) == (20, 20)
    assert classifier.scores == classifier.parent_scores
    texts = [row["body"] for row in classes.rows]
    loaded = fulltune.load(classifier.artifact)
    assert loaded(texts) == fulltune.load(classes.record)(texts)
    assert loaded(texts[0]) == loaded([*texts, "court " * 500])[0]
    assert fulltune.evaluate(classifier.artifact).scores == classifier.scores


def test_batch_and_length_are_dynamic(classifier: Export, classes: Run) -> None:
    graph, original = fulltune.load(classifier.artifact).model, fulltune.load(classes.record).model
    for shape in ((1, 1), (1, 9), (3, 4), (2, 128)):
        ids = torch.arange(shape[0] * shape[1]).reshape(shape) % 50 + 5
        mask = torch.ones_like(ids)
        mask[0, shape[1] // 2 + 1 :] = 0
        with torch.no_grad():
            expected = original(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(graph(input_ids=ids, attention_mask=mask).logits, expected, rtol=0, atol=1e-6)


def test_plain_onnxruntime_needs_nothing_else(classifier: Export, classes: Run) -> None:
    text = classes.rows[0]["body"]
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, classifier.artifact, text]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert found == [classes.predictions[0].output, "False"]


def test_a_server_answers_with_the_graph(classifier: Export, classes: Run) -> None:
    model = fulltune.load(classifier.artifact)
    with site(server_of(model)) as place:
        answer = place.post("/predict", {"inputs": [classes.rows[0]["body"]]})
    assert answer.json()["outputs"] == [fulltune.load(classes.record)(classes.rows[0]["body"])]


@pytest.mark.slow
def test_a_decoder_reads_at_once_and_with_a_cache(decoder: Export, tales: Run) -> None:
    assert decoder.logits.relative < 1e-5
    assert decoder.rows == decoder.equal_answers == len(tales.rows)
    assert decoder.scores["bits_per_byte"].value == pytest.approx(
        decoder.parent_scores["bits_per_byte"].value, rel=1e-6
    )
    prompts = [row["text"][:length] for row, length in zip(tales.rows, (3, 20, 40, 9), strict=False)]
    assert fulltune.load(decoder.artifact)(prompts) == fulltune.load(tales.record)(prompts)
    model = fulltune.load(decoder.artifact).model
    ids = torch.arange(12)[None] + 40
    whole = model(input_ids=ids)
    first = model(input_ids=ids[:, :7])
    rest = model(input_ids=ids[:, 7:], past_key_values=cache_of(first))
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole.logits, rtol=0, atol=1e-6)
    assert cache_of(model(input_ids=ids, use_cache=False)) is None


@pytest.mark.slow
def test_an_encoder_decoder_generates_the_same_queries(translator: Export, queries: Run) -> None:
    assert translator.logits.relative < 1e-5
    assert translator.rows == translator.equal_answers == len(queries.rows)
    names = {path.name for path in Path(translator.artifact).glob("*.onnx")}
    assert names == {"encoder_model.onnx", "decoder_model.onnx"}
    rows = [{"question": row["question"], "db_id": row["db_id"]} for row in queries.rows]
    found = fulltune.predict(translator.artifact, rows)
    assert [row["sql"] for row in found.rows] == [one.output for one in queries.predictions]


@pytest.mark.slow
def test_names_are_those_of_other_tools(classifier: Export, decoder: Export, translator: Export) -> None:
    onnxruntime: Any = pytest.importorskip("onnxruntime")

    def axes(folder: str, name: str) -> dict[str, Any]:
        return {one.name: one.shape for one in onnxruntime.InferenceSession(f"{folder}/{name}").get_inputs()}

    assert axes(classifier.artifact, onnx_model.MODEL) == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
    }
    inputs = axes(decoder.artifact, onnx_model.MODEL)
    assert list(inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs["past_key_values.1.value"] == ["batch", 2, "past", 16]
    inputs = axes(translator.artifact, onnx_model.DECODER)
    assert list(inputs)[:3] == ["decoder_input_ids", "encoder_hidden_states", "encoder_attention_mask"]


def test_a_model_that_torch_cannot_export_is_named(
    classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.onnx.OnnxExporterError("no such operator\nmore")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"torch cannot export BertForSequenceClassification \(no such operator\)"):
        fulltune.export(classes.record, tmp_path / "onnx", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_other_logits_are_refused(
    classifier: Export, classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(bundle: Any, folder: Path) -> None:
        """Write the graph of the model, and change the model that it is compared with."""
        for path in Path(classifier.artifact).glob(f"{onnx_model.MODEL}*"):
            shutil.copy(path, folder)
        graphs.write_settings(bundle, folder)
        with torch.no_grad():
            bundle.model.classifier.bias += 1

    monkeypatch.setattr(graphs, "write_onnx", spoiled)
    with pytest.raises(ModelError, match="computes other logits"):
        fulltune.export(classes.record, tmp_path / "onnx", format="onnx")


def test_onnxruntime_is_named_if_it_is_missing(classifier: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*\[export\]'"):
        fulltune.load(classifier.artifact)


def test_a_graph_cannot_be_trained(classifier: Export, classes: Run) -> None:
    config = classes.record.folder / "config.yaml"
    for quick in (True, False):
        with pytest.raises(ModelError, match="is an ONNX graph, which cannot be trained"):
            fulltune.plan(config, model=classifier.artifact, quick=quick)


def test_the_folder_has_the_config_of_the_run(classifier: Export) -> None:
    folder = Path(classifier.artifact)
    assert {path.name for path in folder.iterdir()} >= {"export.json", "config.yaml", "config.json", "tokenizer.json"}
    assert set(json.loads((folder / "export.json").read_text())["files"]) == {
        path.name for path in folder.iterdir() if path.name != "export.json"
    }
    assert np.isfinite(classifier.logits.largest)
