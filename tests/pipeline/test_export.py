"""Exported models: the same answers through the same commands, compared with their original, and refused if worse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from answering import Run
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner, Result

import fulltune
from fulltune.cli.main import app
from fulltune.errors import ConfigError, ExportRefused, FulltuneError, ModelError, StoreError
from fulltune.pipeline.export import formats
from fulltune.records.export import Export, read_export


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def spoiled(write: Any) -> Any:
    """Return a writer that lets the model answer always with the rarest label."""

    def written(source: Any, *arguments: Any) -> None:
        head: Any = source.bundle.model.get_submodule("classifier")
        before = [value.detach().clone() for value in head.parameters()]
        with torch.no_grad():
            for value in head.parameters():
                value.zero_()
            head.bias[2] = 1
            write(source, *arguments)
            for value, kept in zip(head.parameters(), before, strict=True):
                value.copy_(kept)

    return written


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exporter of bfloat16 write a model with one answer to everything."""
    form = formats.FORMS["safetensors-bf16"]
    broken = formats.Form(form.name, spoiled(form.write))
    monkeypatch.setattr(formats, "FORMS", {**formats.FORMS, form.name: broken})


@pytest.fixture(scope="module")
def half(classes: Run, tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("half") / "bf16"
    return fulltune.export(classes.record, folder, format="safetensors-bf16")


def test_bfloat16_is_a_plain_folder_of_half_the_size(half: Export, classes: Run) -> None:
    folder = Path(half.artifact)
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    original = load_file(classes.record.folder / "model" / "model.safetensors")
    assert weights.keys() == original.keys()
    assert all(torch.equal(value, original[name].to(torch.bfloat16)) for name, value in weights.items())
    assert half.parent.bytes == sum(value.numel() * 4 for value in original.values())
    assert half.bytes == (folder / "model.safetensors").stat().st_size < 0.7 * half.parent.bytes
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label == {
        0: "film",
        1: "law",
        2: "tale",
    }


def test_the_record_compares_both_on_the_evaluation_rows(half: Export, classes: Run) -> None:
    assert read_export(Path(half.artifact)).model_dump_json() == half.model_dump_json()  # an interval may be NaN
    assert (half.rows, half.task, half.labels) == (len(classes.rows), "classification", ("film", "law", "tale"))
    tuned = classes.record.scores["tuned"]
    assert {name: score.value for name, score in half.parent_scores.items()} == {
        name: score.value for name, score in tuned.items()
    }
    assert half.comparison is not None
    assert half.comparison.metric == "macro_f1"
    assert half.comparison.difference.value == pytest.approx(
        half.scores["macro_f1"].value - half.parent_scores["macro_f1"].value
    )
    assert half.margin == 0.01
    assert half.verdict in ("not worse", "within the margin")
    assert 0 < half.logits.largest < 0.5
    assert half.logits.source == "evaluation rows"
    assert half.latency is not None
    assert min(half.latency.parent_ms, half.latency.artifact_ms) > 0


def test_an_exported_folder_is_a_model_for_every_command(half: Export, classes: Run, tmp_path: Path) -> None:
    found = fulltune.evaluate(half.artifact)
    assert found.system == "tuned"
    assert {name: score.value for name, score in found.scores.items()} == {
        name: score.value for name, score in half.scores.items()
    }
    texts = [row["body"] for row in classes.rows]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    shown = command("predict", half.artifact, data, "--quiet")
    assert shown.exit_code == 0, shown.stderr
    answers = [json.loads(line) for line in shown.stdout.splitlines()]
    loaded = fulltune.load(half.artifact)
    assert [row["probabilities"] for row in answers] == [row["probabilities"] for row in loaded(texts)]


def test_a_changed_file_is_refused(half: Export, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(half.artifact, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"2 problems(.|\n)*safetensors has changed(.|\n)*tokenizer.json is missing"):
        fulltune.load(folder)
    (folder / "export.json").write_text("{")
    with pytest.raises(StoreError, match="record of the export cannot be read"):
        fulltune.load(folder)


@pytest.mark.usefixtures("spoil")
def test_a_worse_model_is_refused_and_written_only_with_a_reason(classes: Run, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "bf16"
    with pytest.raises(ExportRefused, match=r"loses .* points of macro-F1 .* on 20 rows; expected a loss below 1.0 p"):
        fulltune.export(classes.record, folder, format="safetensors-bf16")
    assert list(folder.parent.iterdir()) == []
    arguments = ("export", classes.record.folder, folder, "--format", "safetensors-bf16", "--quiet")
    refused = command(*arguments, "--json")
    assert refused.exit_code == 3
    assert (json.loads(refused.stdout)["verdict"], json.loads(refused.stdout)["artifact"]) == ("worse", "")
    assert "error: safetensors-bf16 loses" in refused.stderr
    assert not folder.exists()
    assert command(*arguments, "--margin", "0.99").exit_code == 0
    shutil.rmtree(folder)
    forced = command(*arguments, "--force", "a test", "--json")
    assert forced.exit_code == 0
    assert json.loads(forced.stdout) == json.loads((folder / "export.json").read_text())
    assert read_export(folder).forced == "a test"
    assert read_export(folder).verdict == "worse"


def test_a_folder_without_a_run_is_compared_on_rows_that_are_named(classes: Run, tmp_path: Path) -> None:
    model = classes.record.folder / "model"
    alone = fulltune.export(model, tmp_path / "alone", format="safetensors-bf16")
    assert (alone.rows, alone.verdict, alone.comparison, alone.latency) == (0, "not compared", None, None)
    assert alone.logits.source == "random tokens"
    assert "--data FILE" in " ".join(alone.notes)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": row["body"], "label": row["label"]}) + "\n" for row in classes.rows))
    compared = fulltune.export(model, tmp_path / "compared", format="safetensors-bf16", data=rows)
    assert compared.rows == len(classes.rows)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in classes.rows[:7]))
    assert fulltune.export(classes.record, tmp_path / "run", format="safetensors-bf16", data=few).rows == 7


def test_wrong_calls_say_how_to_correct_them(
    classes: Run, half: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("kept")
    cases: list[tuple[Any, Path, dict[str, Any], type[FulltuneError], str]] = [
        (classes.record, tmp_path / "a", {"format": "bf16"}, ConfigError, "unknown format 'bf16'; expected safetens"),
        (classes.record, tmp_path / "full", {}, StoreError, "the folder is not empty"),
        (classes.record, tmp_path / "full" / "note", {}, StoreError, "a file of this name exists"),
        (classes.record, tmp_path / "a", {"margin": 2.0}, ConfigError, "margin is 2.0"),
        (half.artifact, tmp_path / "a", {}, ModelError, "is an exported model"),
        (tmp_path / "full", tmp_path / "a", {}, ModelError, "has no config.json"),
        (classes.record.folder.parents[1] / "base", tmp_path / "a", {}, ConfigError, "has no head for a task"),
    ]
    for model, folder, options, error, message in cases:
        with pytest.raises(error, match=message):
            fulltune.export(model, folder, **{"format": "safetensors-bf16"} | options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    missing = formats.Form("onnx", formats.FORMS["safetensors-bf16"].write, ("no_such_package",), "export")
    monkeypatch.setattr(formats, "FORMS", {"onnx": missing})
    with pytest.raises(FulltuneError, match=r"needs no_such_package.*pip install .*\[export\]'"):
        fulltune.export(classes.record, tmp_path / "a", format="onnx")


def test_a_full_disk_leaves_nothing(classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(source: Any, folder: Path, *_: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "FORMS", {"safetensors-bf16": formats.Form("safetensors-bf16", write)})
    with pytest.raises(StoreError, match="No space left on device"):
        fulltune.export(classes.record, tmp_path / "a", format="safetensors-bf16")
    assert list(tmp_path.iterdir()) == []


def test_the_command_shows_both_side_by_side(classes: Run, tmp_path: Path) -> None:
    shown = command("export", classes.record.folder, tmp_path / "a", "--format", "safetensors-bf16")
    text = " ".join(shown.stdout.split())
    assert shown.exit_code == 0, shown.stderr
    assert "accuracy" in text.lower()
    assert "answers are equal" in text
    assert "Verdict: " in text


def test_the_registry_keeps_exports_under_their_version(classes: Run, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(classes.record.folder.parent, out)
    registry = fulltune.Registry(out)
    version = registry.of_run(classes.record.run_id)
    assert version is not None
    export = fulltune.export(version.ref, tmp_path / "bf16", format="safetensors-bf16", out=out)
    assert export.parent.name == version.ref
    kept = registry.artifact(version, "safetensors-bf16")
    assert kept.verdict == export.verdict
    shown = command("models", "show", version.name, "--out", out)
    assert f"{version.ref} as safetensors-bf16: {kept.size:,} bytes" in " ".join(shown.stdout.split())
    copied = command(
        *("models", "export", version.ref, "--artifact", "safetensors-bf16", "--to", tmp_path / "copy", "--out", out)
    )
    assert copied.exit_code == 0, copied.stderr
    assert fulltune.load(tmp_path / "copy")("a court") == fulltune.load(export.artifact)("a court")
    missing = command("models", "export", version.ref, "--artifact", "gguf-f16", "--to", tmp_path / "b", "--out", out)
    assert missing.exit_code == 1
    assert "is not kept as gguf-f16; expected" in missing.stderr
    assert command("models", "gc", "--keep", 0, "--out", out).exit_code == 0
    weights = registry.objects.path(kept.files["model.safetensors"].sha256)
    assert command("models", "verify", "--out", out).exit_code == 0
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    assert f"{version.ref} (safetensors-bf16)/model.safetensors is damaged" in command(
        "models", "verify", "--out", out
    ).stderr.replace("\n", " ")
    fulltune.export(version.ref, tmp_path / "again", format="safetensors-bf16", out=out)
    assert command("models", "verify", "--out", out).exit_code == 0
    assert command("models", "gc", "--keep", 0, "--delete", "--out", out).exit_code == 0
    assert not weights.exists()
