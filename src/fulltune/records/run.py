"""The machine-readable truth about a run: typed, versioned, and safe for NaN.

Everything written here is read back by :func:`read_record`, which refuses a schema newer than its own. A float that is
not a number is written as the string ``"NaN"`` (strict JSON has no NaN), and comes back as one: it never becomes null
or 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fulltune.errors import StoreError
from fulltune.runtime.validation import explained, unread

SCHEMA = 1

Verdict = Literal["improved", "no detectable change", "worse"]
Outcome = Literal["accepted", "rejected", "stopped"]


class Model(BaseModel):
    """Base of all records: frozen, no unknown keys, NaN kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=(), allow_inf_nan=True
    )

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


class Score(Model):
    """A metric's value on ``n`` rows with its bootstrap interval ``[low, high]``."""

    value: float
    low: float
    high: float
    n: int


class Comparison(Model):
    """Paired difference between two systems on the same rows.

    ``delta`` is first minus second in the metric's own unit; ``low`` and ``high`` bound it; ``p`` is the two-sided
    bootstrap p-value. ``verdict`` already takes the metric's direction into account.
    """

    metric: str
    delta: float
    low: float
    high: float
    p: float
    verdict: Verdict


class MetricInfo(Model):
    """What a reader must know to understand a number: which way is better, which version, and whose definition."""

    direction: Literal["higher", "lower"]
    version: int
    source: str


class ModelInfo(Model):
    """The base: where it came from, the SHA-256 of its files, its family (``decoder``, ``encoder``,
    ``encoder-decoder``), and what its files contradict or leave open, with what was used (``reconciled``).
    """

    source: str
    sha256: str
    family: str
    architecture: str
    reconciled: tuple[str, ...] = ()


class SplitInfo(Model):
    """One split of the data: where from, how many rows, and the SHA-256 of their canonical JSON."""

    source: str
    rows: int
    sha256: str


class AuditSummary(Model):
    """What the audit found, in counts; the whole of it is in ``audit.json``."""

    errors: int
    warnings: int
    findings: tuple[str, ...]
    leaked_rows: int


class DataInfo(Model):
    train: SplitInfo
    eval: SplitInfo
    valid: SplitInfo | None = None
    audit: AuditSummary


class Parameters(Model):
    """What was trained.

    ``moved`` is the share of trainable tensors whose bytes differ after training, ``evidence`` the checks that passed.
    ``largest_change`` is the largest change of a weight, of a sample from each tensor, relative to the largest weight
    of that sample; None where it was not measured.
    """

    total: int
    trainable: int
    frozen: int
    dtype: str
    tied: tuple[str, ...] = ()
    moved: float = 0.0
    largest_change: float | None = None
    evidence: tuple[str, ...] = ()


class AdapterInfo(Model):
    """What a method that trains few tensors leaves beside its model.

    ``bytes`` is the size of the folder ``adapter/``. Where the adapter was merged into the weights, the merged model is
    the one that is scored; ``before`` and ``after`` are the deciding ``metric`` on the same first ``rows`` of the
    evaluation, with the adapter beside the weights and inside them.
    """

    bytes: int
    merged: bool
    metric: str = ""
    rows: int = 0
    before: float = float("nan")
    after: float = float("nan")


class Training(Model):
    """How it was trained, as it came out (steps really taken, rates really used).

    ``optimizer_bytes`` is what the optimizer keeps between steps, ``peak_bytes`` the most resident memory during
    training (evaluations of the curve included), each on the process that keeps most; ``batch_size`` is that of one of
    ``processes``, which shared the work by ``engine``. ``padding`` is the share of the positions that
    were computed without a token in them, and ``packed`` says whether documents shared rows (then some of
    ``batch_size`` documents may lie in one). ``fast_paths`` says by which kernels it was computed.
    """

    optimizer: str
    optimizer_bytes: int = 0
    peak_bytes: int = 0
    scheduler: str
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    batch_size: int
    accumulation: int
    processes: int = 1
    engine: str = ""
    epochs: float
    steps: int
    seed: int
    tokens: int
    rows: int
    final_loss: float
    padding: float = 0.0
    packed: bool = False
    fast_paths: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


class Resources(Model):
    """Cost. Seconds of wall time, bytes of peak resident memory, tokens that carried a loss or context (no padding) a
    second, and the size of the folder ``model/``.
    """

    peak_rss_bytes: int
    train_seconds: float
    tokens_per_second: float
    total_seconds: float
    stage_seconds: dict[str, float] = Field(default_factory=dict)
    machine: str = ""
    model_bytes: int = 0


class GuardEvent(Model):
    """A guard's verdict at a step, told in one sentence."""

    guard: str
    step: int
    verdict: Literal["continue", "stop", "roll back"]
    message: str


def base_kept(guards: Iterable[GuardEvent]) -> GuardEvent | None:
    """The verdict that step 0 was the best, if there was one: the model of the run is then the base."""
    return next((e for e in guards if (e.guard, e.verdict, e.step) == ("overfitting", "continue", 0)), None)


class Retention(Model):
    """One thing that the base could do, scored on the base and on the tuned model, on the same rows.

    ``change`` is the relative loss against the base, with its paired interval: above 0 the tuned model does worse,
    whatever the metric's direction; 0.05 is five per cent. ``verdict`` compares it with the ``budget``.
    """

    metric: str
    direction: Literal["higher", "lower"]
    base: Score
    tuned: Score
    change: float
    low: float
    high: float
    budget: float
    verdict: Literal["kept", "within budget", "forgotten"]


class PromptUse(Model):
    """How one system's rows were asked: what did not fit into the model's positions.

    Attributes:
        rows: All that were asked.
        cut_rows, cut_tokens: Rows whose own text was shortened, and the tokens that were left out.
        cut_parts: Rows by the part that was shortened (``input``, ``schema``).
        shots: Rows by the number of shots in their prompt; empty where no shots were to be shown.
        limited_rows: Rows whose answer had fewer than ``evaluation.max_new_tokens`` positions left.
    """

    rows: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    cut_parts: dict[str, int] = Field(default_factory=dict)
    shots: dict[int, int] = Field(default_factory=dict)
    limited_rows: int = 0


class Record(Model):
    """One run.

    ``confidence`` is that of every interval. ``scores[system][metric]``; systems are ``majority``, ``tfidf``,
    ``zero_shot``, ``few_shot``, ``tuned``. ``prompts[system]`` is how its rows were asked, and
    ``chat_date`` what a chat template that asks for the date was told is today.
    """

    schema_version: int = Field(default=SCHEMA, alias="schema")
    run_id: str
    fulltune: str
    created: str
    task: str
    task_version: int
    method: str
    headline: str
    metric: str
    metrics: dict[str, MetricInfo]
    model: ModelInfo
    data: DataInfo
    parameters: Parameters
    adapter: AdapterInfo | None = None
    training: Training
    confidence: float = 0.95
    scores: dict[str, dict[str, Score]]
    scores_without_leaks: dict[str, dict[str, Score]] = Field(default_factory=dict)
    shots: tuple[str, ...] = ()
    chat_date: date | None = None
    prompts: dict[str, PromptUse] = Field(default_factory=dict)
    comparison: dict[str, Comparison]
    details: dict[str, Any] = Field(default_factory=dict)
    retention: dict[str, Retention] = Field(default_factory=dict)
    guards: tuple[GuardEvent, ...] = ()
    resources: Resources
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    outcome: Outcome
    reasons: tuple[str, ...] = ()

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        protected_namespaces=(),
        allow_inf_nan=True,
        populate_by_name=True,
    )

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, by_alias=True) + "\n"


class EvaluationRecord(Model):
    """What one model scored on one split: the output of ``fulltune evaluate``."""

    model: ModelInfo
    system: str
    task: str
    task_version: int
    metric: str
    metrics: dict[str, MetricInfo]
    data: SplitInfo
    scores: dict[str, Score]
    seconds: float
    chat_date: date | None = None
    prompts: dict[str, PromptUse] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Step(Model):
    """One line of ``steps.jsonl``: what the trainer logged at an optimizer step (losses are per token or per row).

    ``attempt`` is 1 until training is rolled back, then 2, and so on. The file keeps what was discarded;
    :func:`standing` leaves it out.
    """

    step: int
    attempt: int = 1
    epoch: float
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None


def standing(steps: Iterable[Step]) -> list[Step]:
    """The steps that count: where training was rolled back and a step was taken again, as it was taken last."""
    kept: list[Step] = []
    for step in steps:
        if kept and step.attempt > kept[-1].attempt:
            kept = [earlier for earlier in kept if earlier.step < step.step]
        kept.append(step)
    return kept


class Prediction(Model):
    """One line of ``predictions.jsonl``: what one system said about one row.

    Attributes:
        system: ``majority``, ``tfidf``, ``zero_shot``, ``few_shot`` or ``tuned``.
        id: The row's id, the same for every system.
        input: What was asked (the row's own text, not the prompt around it).
        reference: The right answer: a text, a label, or a list of labels.
        output: The system's answer, of the reference's type.
        values: Named numbers and strings that metrics read, e.g. ``nll``, ``tokens``, ``bytes``, ``confidence``,
            ``capped``.
    """

    system: str
    id: str
    input: str
    reference: str | tuple[str, ...]
    output: str | tuple[str, ...]
    values: dict[str, Any] = Field(default_factory=dict)


def read_record(path: Path) -> Record:
    """Read a ``record.json``.

    Raises:
        StoreError: It is missing, not JSON, of a newer schema, or does not fit the schema.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(
            "there is no record.json", where=str(path), fix="name a finished run; `fulltune models list` shows them"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(
            f"the record cannot be read ({unread(error)})",
            expected="a JSON object",
            where=str(path),
            fix="run it again",
        ) from error
    found = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(found, int) and found > SCHEMA:
        raise StoreError(
            f"the record has schema {found}", expected=f"at most {SCHEMA}", where=str(path), fix="upgrade fulltune"
        )
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        raise StoreError(
            f"the record does not fit its schema ({explained(error)})",
            where=str(path),
            fix="run it again, or restore the file",
        ) from error
