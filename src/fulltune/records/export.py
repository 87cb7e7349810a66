"""Define ``export.json``: what an exported model is, and how it compares with the model that it was made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from fulltune.errors import StoreError
from fulltune.records.base import Model
from fulltune.records.run import Score
from fulltune.records.verdict import PairVerdict

#: Name of the file in an exported folder; a folder with it can be used wherever a command takes a model.
EXPORT_FILE = "export.json"

#: Formats of exported models.
Format = Literal["safetensors-bf16", "onnx", "onnx-int8", "gguf-f16", "gguf-q8_0"]

#: ``not worse``: a loss of the margin is excluded. ``within the margin``: the measured loss is below the margin, but
#: the rows cannot exclude one of that size. ``worse``: the measured loss is the margin or more.
ExportVerdict = Literal["not worse", "within the margin", "worse", "not compared"]


class ExportedFile(Model):
    """Size and hash of a file."""

    bytes: int
    sha256: str


class Parent(Model):
    """The FP32 model that was exported: its name, hash, and the size of its weights."""

    name: str
    sha256: str
    bytes: int


class LogitDifference(Model):
    """Difference of the logits of both models on the same inputs, each computed alone.

    Attributes:
        rows: Number of inputs.
        largest: Largest absolute difference.
        relative: The largest difference as a fraction of the largest absolute logit of the parent.
        source: Source of the inputs: evaluation rows, or random tokens if there are none.
    """

    rows: int
    largest: float
    relative: float
    source: Literal["evaluation rows", "random tokens"]


class Latency(Model):
    """Median time per row in milliseconds, one row at a time, from text to answer.

    Attributes:
        rows: Number of rows, each answered by both models in turn.
        parent_ms, artifact_ms: Elapsed time.
        parent_cpu_ms, artifact_cpu_ms: Processor time of all threads.
        threads: Compute threads.
    """

    rows: int
    parent_ms: float
    artifact_ms: float
    parent_cpu_ms: float
    artifact_cpu_ms: float
    threads: int


class KeptLayer(Model):
    """A matrix product that stays in FP32 in a quantized model.

    Attributes:
        layer: Name of the layer.
        error: Largest logit error on the chosen rows if it alone is quantized.
    """

    layer: str
    error: float


class Quantization(Model):
    """The quantization of a model.

    Attributes:
        products: Number of matrix products with constant weights.
        kept: Those that stay in FP32, the one with the largest error first.
        chosen_on: Rows that the choice was made on; never evaluation rows.
        attempts: Number of kept products and mean logit error of each attempt.
    """

    products: int
    kept: tuple[KeptLayer, ...] = ()
    chosen_on: str = ""
    attempts: tuple[tuple[int, float], ...] = ()


class Export(Model):
    """An exported model.

    Attributes:
        artifact: Its folder; empty if it was refused.
        format: Its format.
        task: The task.
        parent: The model that was exported.
        bytes: Size of its weights.
        sha256: One hash over the names and contents of its files.
        files: All files but ``export.json``.
        labels, multi_label: Names of the classes in the order of the logits.
        eval_sha256: Hash of the rows that it was compared on.
        left_out: Ids of those rows that do not count, since they also occur in train.
        rows: Number of rows that were compared.
        equal_answers: Number of rows that both models answered equally.
        scores: Scores of the exported model.
        parent_scores: Those of the model that was exported, on the same rows.
        comparison: The paired comparison; ``a`` is the parent. None if there are no rows.
        margin: Smallest loss that matters, in the unit of the metric.
        verdict: On the exported model.
        logits: Difference of logits.
        latency: Time per row; None without rows.
        quantization: Its quantization; None for other formats.
        forced: The reason to export it although it is worse.
        notes: Advice to users.
        fulltune: Version of fulltune.
        created: Time (UTC).
    """

    artifact: str = ""
    format: Format
    task: str
    parent: Parent
    bytes: int
    sha256: str
    files: dict[str, ExportedFile]
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    eval_sha256: str = ""
    left_out: tuple[str, ...] = ()
    rows: int = 0
    equal_answers: int = 0
    scores: dict[str, Score] = Field(default_factory=dict)
    parent_scores: dict[str, Score] = Field(default_factory=dict)
    comparison: PairVerdict | None = None
    margin: float | None = None
    verdict: ExportVerdict
    logits: LogitDifference
    latency: Latency | None = None
    quantization: Quantization | None = None
    forced: str = ""
    notes: tuple[str, ...] = ()
    fulltune: str
    created: str


def read_export(folder: Path) -> Export:
    """Return the record of an exported folder.

    Raises:
        StoreError: It is missing, or no record of an export.
    """
    path = folder / EXPORT_FILE
    try:
        return Export.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        fix = "export the model again"
        raise StoreError(f"the record of the export cannot be read ({reason})", where=str(path), fix=fix) from error


def is_export(folder: Path) -> bool:
    """Return True for the folder of an exported model; False for a name that no folder can have, too."""
    return os.path.isfile(folder / EXPORT_FILE)  # Path.is_file raises if the name is too long
