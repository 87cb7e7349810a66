"""Define the records of a run: typed, versioned, and safe for NaN.

:func:`read_record` reads what was written here and rejects a newer schema. Strict JSON has no NaN: such a float is
written as the string ``"NaN"`` and read back as NaN; it never becomes null or 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from fulltune.errors import StoreError, check_schema
from fulltune.records.base import Model as Model
from fulltune.records.data import DataSummary
from fulltune.records.parts import PartScores
from fulltune.records.plan import Plan
from fulltune.runtime.validation import first_problem, read_failure, read_json

SCHEMA = 1

#: Verdict on a difference. ``too few rows``: no difference whatever could be detected on so few. ``too few seeds``: the
#: trained models differ, but other seeds of the same methods might not.
Verdict = Literal["improved", "no detectable change", "worse", "too few rows", "too few seeds"]

#: Outcome of a run (``docs/decisions/0005``). ``accepted``: better than every baseline, and not more was forgotten than
#: the budget allows. ``undecided``: the rows do not show this, a person has to decide. ``rejected``: a baseline is
#: better, or nothing was learned. ``stopped``: training ended early.
Outcome = Literal["accepted", "undecided", "rejected", "stopped"]


class Score(Model):
    """The value of a metric on ``n`` rows with its confidence interval ``[low, high]``."""

    value: float
    low: float
    high: float
    n: int


class Comparison(Model):
    """Paired difference between two systems on the same rows.

    Attributes:
        metric: Name of the metric.
        delta: First minus second, in the unit of the metric.
        low, high: Its interval.
        p: Two-sided p-value. It is at most one minus the confidence exactly if the interval excludes 0.
        verdict: Accounts for the direction of the metric. ``improved`` and ``worse`` need an interval that excludes 0
            and a difference of at least ``min_effect``.
        n: Number of rows.
        smallest_detectable: Smallest difference that as many rows detect in four of five cases (80% power); NaN if it
            is unknown.
        groups: Number of groups that were swapped and resampled; 0 if every row is independent.
        test: Name of the test.
        min_effect: Smallest difference that counts, in the unit of the metric.
        p_holm: p-value adjusted for the number of comparisons (Holm 1979), for the claim that the first is better (or
            worse) than this one of several systems; NaN if there is only one comparison.
    """

    metric: str
    delta: float
    low: float
    high: float
    p: float
    verdict: Verdict
    n: int = 0
    smallest_detectable: float = float("nan")
    groups: int = 0
    test: str = ""
    min_effect: float = 0.0
    p_holm: float = float("nan")

    @property
    def is_certain(self) -> bool:
        """True if the interval excludes 0, however small the difference is."""
        return self.low > 0 or self.high < 0


class MetricInfo(Model):
    """Definition of a metric: which direction is better, its version, and the source of its formula."""

    direction: Literal["higher", "lower"]
    version: int
    source: str


class ModelInfo(Model):
    """The base model.

    Attributes:
        source: Its name, folder or hub id, as in the config.
        sha256: Hash of its files.
        family: ``decoder``, ``encoder`` or ``encoder-decoder``.
        architecture: Name of the model class.
        reconciled: Contradictions and gaps of its files, with the values that were used.
    """

    source: str
    sha256: str
    family: str
    architecture: str
    reconciled: tuple[str, ...] = ()


class LanguageGap(Model):
    """Languages of a run whose base was not pretrained on that of the data.

    Attributes:
        data: English name of the language of the training texts.
        base: Languages that the base was pretrained on.
        alternative: A base for the language of the data, by its name on the hub; empty if none is known.
    """

    data: str
    base: tuple[str, ...]
    alternative: str = ""


class FileFormat(Model):
    """The format in which a file was read.

    Attributes:
        file: Name of the file.
        format: ``csv``, ``json``, ``excel``, ``parquet``, ``arrow``, ``text``, ``datasets``, ``hub`` or
            ``memory`` (rows given from Python); ``folder`` for a folder of which not all files were read.
        encoding: Codec of a text file.
        delimiter: Character between the cells of a CSV file.
        part: The part that was read: a split, a sheet, or the key of a JSON object.
        assumed: Inferences that may be wrong, as sentences; empty if the file itself leaves no doubt.
        evidence: The part of these sentences that differs between files in one encoding; empty if none does.
        is_doubtful: Another encoding fits almost as well.
    """

    file: str
    format: str
    encoding: str = ""
    delimiter: str = ""
    part: str = ""
    assumed: tuple[str, ...] = ()
    evidence: str = ""
    is_doubtful: bool = False

    @property
    def is_unread(self) -> bool:
        """True for a folder of which not all files were read: ``assumed`` says which."""
        return self.format == "folder"


class SplitInfo(Model):
    """One split of the data.

    Attributes:
        source: Its source.
        rows: Its number of rows.
        drawn_from: Number of rows of which these are a sample (`data.limit`, `data.eval_limit`); 0 if they are all.
        sha256: Hash of the canonical JSON of its rows.
        skipped: Number of rows that cannot be used and were left out (`data.bad_rows: skip`).
        files: The formats of its files; files that were read in the same way are listed once, by the first of them.
    """

    source: str
    rows: int
    drawn_from: int = 0
    sha256: str
    skipped: int = 0
    files: tuple[FileFormat, ...] = ()


class AuditSummary(Model):
    """Counts of the audit; ``audit.json`` holds the complete findings."""

    errors: int
    warnings: int
    findings: tuple[str, ...]
    leaked_rows: int


class DataInfo(Model):
    """The data of a run, split by split. ``summary`` describes the rows as the model gets them."""

    train: SplitInfo
    eval: SplitInfo
    valid: SplitInfo | None = None
    audit: AuditSummary
    summary: DataSummary = DataSummary()


class Parameters(Model):
    """The trained parameters and the evidence that they changed.

    ``moved`` is the fraction of trainable tensors whose bytes differ after training; ``evidence`` lists the checks that
    passed. ``largest_change`` is the largest change of a weight in a sample of each tensor, relative to the largest
    weight of that sample; None if it was not measured.
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
    """The adapter of a method that trains few tensors.

    ``bytes`` is the size of the folder ``adapter/``. If the adapter was merged into the weights, the merged model is
    scored; ``before`` and ``after`` are the deciding ``metric`` on the first ``rows`` evaluation rows, without and with
    merging.
    """

    bytes: int
    merged: bool
    metric: str = ""
    rows: int = 0
    before: float = float("nan")
    after: float = float("nan")


class Training(Model):
    """The training as it was executed (steps taken, rates used).

    ``optimizer_bytes`` is the size of the optimizer state, ``peak_bytes`` the peak of resident memory during training
    (evaluations of the curve included); both are maxima over the processes. ``batch_size`` is per process;
    ``processes`` shared the work by means of ``engine``. ``padding`` is the fraction of computed positions without a
    token. ``packed`` is True if documents shared rows (several of ``batch_size`` documents may then be in one row).
    ``fast_paths`` lists the kernels that were used. ``regularization`` has the strength of each regularizer that was
    active, by its key in the section ``regularize`` (or ``trainer``, for NEFTune); ``general_text`` is the source of
    the general text that some of them read, and empty if none did.
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
    regularization: dict[str, float] = Field(default_factory=dict)
    general_text: str = ""
    advice: tuple[str, ...] = ()


class Resources(Model):
    """Cost of the run.

    Seconds are wall time; ``seconds_before`` is the part of training before the run was resumed. ``core_seconds`` were
    computed by the threads of the (first) process, since it was resumed: unlike wall time, other programs on the
    machine hardly change them. They are None in older records.
    ``peak_rss_bytes`` is resident memory, ``tokens_per_second`` counts tokens without padding,
    and ``model_bytes`` is the size of the folder ``model/``.
    """

    peak_rss_bytes: int
    train_seconds: float
    tokens_per_second: float
    total_seconds: float
    seconds_before: float = 0.0
    core_seconds: float | None = None
    stage_seconds: dict[str, float] = Field(default_factory=dict)
    machine: str = ""
    model_bytes: int = 0


class GuardEvent(Model):
    """The verdict of a guard at a step, with a message of one sentence."""

    guard: str
    step: int
    verdict: Literal["continue", "stop", "roll back"]
    message: str

    @property
    def stops(self) -> bool:
        """True if training ended with this verdict."""
        return self.verdict == "stop"

    @property
    def keeps_base(self) -> bool:
        """True if the guard against overfitting chose step 0."""
        return self.guard == "overfitting" and self.verdict == "continue" and self.step == 0


def base_kept(guards: Iterable[GuardEvent]) -> GuardEvent | None:
    """Return the event that kept step 0 (the model of the run is then the base), or None."""
    return next((event for event in guards if event.keeps_base), None)


def best_baseline(record: Record, among: Iterable[str] | None = None) -> str | None:
    """Return the baseline with the best value of the deciding metric, or None if none has a value.

    Args:
        record: A record.
        among: Names of baselines; all by default.
    """
    info = record.metrics.get(record.metric)
    sign = -1 if info and info.direction == "lower" else 1
    names = [name for name in (record.scores if among is None else among) if name != "tuned"]
    known = {name: record.scores.get(name, {}).get(record.metric) for name in names}
    values = {name: sign * score.value for name, score in known.items() if score and not math.isnan(score.value)}
    return max(values, key=values.__getitem__, default=None)


class Retention(Model):
    """One ability of the base model, scored on the base and the tuned model on the same rows.

    ``change`` is the relative loss against the base with its paired interval: above 0 the tuned model is worse,
    regardless of the metric's direction; 0.05 is five percent. ``verdict`` compares the interval with the ``budget``:
    ``kept`` if it is below (at most so much was lost), ``lost`` if it is above, ``cannot tell`` if the budget is
    inside or there are too few rows. An ability that need not be kept has an infinite budget and the verdict
    ``no budget``; ``reason`` says why.
    """

    metric: str
    direction: Literal["higher", "lower"]
    base: Score
    tuned: Score
    change: float
    low: float
    high: float
    budget: float
    verdict: Literal["kept", "lost", "cannot tell", "no budget"]
    reason: str = ""


class PromptUse(Model):
    """Prompts of one system, and what did not fit into the model's positions.

    Attributes:
        rows: Number of prompts.
        truncated_rows, removed_tokens: Rows whose own text was truncated, and the number of tokens removed.
        truncated_parts: Number of rows by the truncated part (``input``, ``schema``).
        shots: Number of rows by the number of shots in their prompt; empty if no shots were requested.
        limited_rows: Rows with fewer than ``evaluation.max_new_tokens`` positions left for the answer.
        unlisted_labels, cut_labels: Labels that the prompts do not list, and labels whose names are cut before they are
            scored, because the model's window has no room for them.
    """

    rows: int = 0
    truncated_rows: int = 0
    removed_tokens: int = 0
    truncated_parts: dict[str, int] = Field(default_factory=dict)
    shots: dict[int, int] = Field(default_factory=dict)
    limited_rows: int = 0
    unlisted_labels: int = 0
    cut_labels: int = 0


class FoldOutcome(Model):
    """A fold of cross-validation.

    Attributes:
        fold: Its number, from 1.
        run_id: The run that was trained on the other folds.
        train_rows: Rows that it was trained on.
        score: Score of its tuned model in the deciding metric, on the rows of the fold.
        outcome: Its own outcome.
    """

    fold: int
    run_id: str
    train_rows: int
    score: Score
    outcome: Outcome


class BaselineUse(Model):
    """Settings with which a baseline was computed.

    Attributes:
        seconds: Wall time of its answers when they were computed.
        setting: Its choice on rows of train, such as ``C = 3 (3-fold cross-validation on train)``.
        sampled: The rows that it read or answered, in words, if not all of them; else empty.
        is_cached: The answers are those of an earlier run.
    """

    seconds: float
    setting: str = ""
    sampled: str = ""
    is_cached: bool = False


#: The task whose baselines score texts and answer none.
SCORES_ONLY = "causal-lm"

#: Actions that may be advised after a run.
Action = Literal[
    "use it",
    "use the baseline",
    "get more evaluation rows",
    "get more training rows",
    "merge the spellings of labels",
    "choose another base",
    "read longer texts",
    "train longer",
    "lower the rate",
    "raise the rate",
    "keep more",
    "free memory",
    "check the data",
]


class Recommendation(Model):
    """The advice after a run, by the rules of :mod:`fulltune.metrics.recommendation`.

    Attributes:
        use: The system to use now: ``tuned``, the name of a baseline, or empty if none can be recommended.
        action: The next action.
        sentence: The same in one or two sentences for a person, with the reason.
        rows: Evaluation rows that would show the observed difference (80% power); None if more rows are no help.
    """

    use: str
    action: Action
    sentence: str
    rows: int | None = None


class Record(Model):
    """The record of a run.

    ``confidence`` is the level of every interval. ``scores[system][metric]`` holds the deciding scores; systems are
    the baselines of the task (``docs/baselines.md``) and ``tuned``. ``baselines[system]`` describes how a baseline was
    computed. If evaluation rows also occur in train, ``scores_all_rows`` holds the scores on all rows and
    ``scores_without_leaks`` those without these rows; one of them is ``scores`` (``data.summary.leaks.counted`` says
    which). Otherwise both are empty. ``parts`` compares the tuned model with the best baseline by group, folder or
    database; None if the rows have none. ``prompts[system]`` describes the prompts of a system. ``chat_date`` is the
    date that chat templates used as today. ``language_gap`` is None if the base was pretrained on the language of the
    data, or if one of both is unknown.

    A record knows the folder that it was read from: see :attr:`folder`, :attr:`report` and :attr:`plan`.
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
    language_gap: LanguageGap | None = None
    data: DataInfo
    parameters: Parameters
    adapter: AdapterInfo | None = None
    training: Training
    confidence: float = 0.95
    scores: dict[str, dict[str, Score]]
    scores_all_rows: dict[str, dict[str, Score]] = Field(default_factory=dict)
    scores_without_leaks: dict[str, dict[str, Score]] = Field(default_factory=dict)
    parts: PartScores | None = None
    baselines: dict[str, BaselineUse] = Field(default_factory=dict)
    shots: tuple[str, ...] = ()
    folds: tuple[FoldOutcome, ...] = ()
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
    recommendation: Recommendation | None = None

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        protected_namespaces=(),
        allow_inf_nan=True,
        populate_by_name=True,
    )

    @property
    def left_out(self) -> frozenset[str]:
        """Ids of evaluation rows that do not count in the deciding scores, because they also occur in train."""
        leaks = self.data.summary.leaks
        return frozenset() if leaks is None or leaks.counted else frozenset(leaks.ids)

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, by_alias=True) + "\n"

    _folder: Path | None = PrivateAttr(default=None)

    def stored_in(self, folder: Path) -> Record:
        """Return this record as the one of a run folder."""
        record = self.model_copy()
        record._folder = folder
        return record

    @property
    def folder(self) -> Path:
        """The folder of the run, with its model, predictions and logs.

        Raises:
            StoreError: The record was not read from a folder.
        """
        if self._folder is None:
            raise StoreError(f"the record of {self.run_id} was not read from a run folder", fix="use read_record(path)")
        return self._folder

    @property
    def report(self) -> Path:
        """The page of the run, one HTML file that opens without a network."""
        return self.folder / "report.html"

    @property
    def plan(self) -> Plan:
        """The plan that was made before training.

        Raises:
            StoreError: The file is missing or damaged.
        """
        path = self.folder / "plan.json"
        try:
            return Plan.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise StoreError(
                f"the plan cannot be read ({read_failure(error)})", where=str(path), fix="run it again"
            ) from error


class EvaluationRecord(Model):
    """Scores of one model on one split: the output of ``fulltune evaluate``."""

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
    """One line of ``steps.jsonl``: the log of an optimizer step (losses are per token or per row).

    ``attempt`` is 1 until training is rolled back, then 2, and so on. The file also keeps discarded steps;
    :func:`without_discarded` removes them.
    """

    step: int
    attempt: int = 1
    epoch: float
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None


def without_discarded(steps: Iterable[Step]) -> list[Step]:
    """Return the steps without those that a roll-back discarded."""
    kept: list[Step] = []
    for step in steps:
        if kept and step.attempt > kept[-1].attempt:
            kept = [earlier for earlier in kept if earlier.step < step.step]
        kept.append(step)
    return kept


class Prediction(Model):
    """One line of ``predictions.jsonl``: the prediction of one system for one row.

    Attributes:
        system: ``majority``, ``tfidf``, ``zero_shot``, ``few_shot`` or ``tuned``.
        id: The row's id, the same for every system.
        input: The text of the row, without the prompt around it.
        reference: The expected answer: a text, a label, or a list of labels.
        output: The system's answer, of the same type as the reference.
        values: Named numbers and strings that metrics read, e.g. ``nll``, ``tokens``, ``bytes``, ``confidence``,
            ``capped``.
        group: The group of the row (``data.group``), such as its document; empty if rows are independent.
    """

    system: str
    id: str
    input: str
    reference: str | tuple[str, ...]
    output: str | tuple[str, ...]
    values: dict[str, Any] = Field(default_factory=dict)
    group: str = ""


def read_record(path: str | Path) -> Record:
    """Read a ``record.json``, given its path or the folder of the run.

    Raises:
        StoreError: The file is missing, not JSON, of a newer schema, or does not match the schema.
    """
    path = Path(path)
    path = path / "record.json" if path.is_dir() else path
    try:
        raw = read_json(path, "the record")
    except FileNotFoundError:
        raise StoreError(
            "there is no record.json", where=str(path), fix="name a finished run; `fulltune models list` shows them"
        ) from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(schema, int):
        check_schema("the record", schema, SCHEMA, path)
    try:
        return Record.model_validate(raw).stored_in(path.parent)
    except ValidationError as error:
        raise StoreError(
            f"the record does not match its schema ({first_problem(error)})",
            where=str(path),
            fix="run it again, or restore the file",
        ) from error


def left_out(folder: Path, eval_sha256: str) -> frozenset[str]:
    """Return the ids of the evaluation rows that a run leaves out of its deciding scores.

    Args:
        folder: Folder of the run, or of a version.
        eval_sha256: Hash of the rows that are scored now; no row is left out of others.
    """
    path = folder / "record.json"
    if not path.is_file():
        return frozenset()
    record = read_record(path)
    return record.left_out if record.data.eval.sha256 == eval_sha256 else frozenset()
