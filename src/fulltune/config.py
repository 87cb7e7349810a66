"""Define the config: frozen pydantic models with the same names in YAML, JSON and Python keyword arguments.

An unknown key is an error that names the closest known key. All problems are reported at once.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from fulltune.errors import ConfigError, Problem, closest, did_you_mean, shortened
from fulltune.runtime import paths, plugins
from fulltune.runtime.codecs import CODECS, is_codec
from fulltune.runtime.config_file import check_size, check_texts, read_mapping, read_value, to_yaml
from fulltune.runtime.other_tools import instead_of, key_for, similar_to
from fulltune.runtime.rows_file import as_source, check_model_reference, with_splits
from fulltune.runtime.validation import config_spelling, expected_input

#: Default of `train.learning_rate` by method. `full`: Devlin et al. 2019, appendix A.3. `lora`, `qlora`: Hu et al.
#: 2022, appendix D; about ten times the rate of `full` (Schulman et al. 2025, "LoRA Without Regret").
#: `prompt-tuning`: PEFT's guides; Lester et al. 2021 use 0.3, but with Adafactor. `bitfit`: Ben Zaken et al. 2022,
#: section 4. `linear-probe`: AdamW's own default.
LEARNING_RATES = {
    "full": 3e-5,
    "lora": 3e-4,
    "qlora": 3e-4,
    "prompt-tuning": 3e-2,
    "linear-probe": 1e-3,
    "bitfit": 1e-3,
}

#: Keys of `data` that name a column.
COLUMN_KEYS = (
    *("text", "prompt", "completion", "label", "labels", "source", "target", "question", "sql", "db_id"),
    *("id", "group", "split"),
)

#: Largest number in a config: the largest seed that NumPy accepts.
MAX_NUMBER = 2**32 - 1

#: Smallest normal number in float32: steps with a smaller learning rate change no weight.
_MIN_RATE = 2.0**-126

#: Numbers in the notations of YAML 1.2, which are taken from quoted text too.
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


#: Place of a value that is in no file, for messages.
_OPTIONS, _OVERRIDES = "keyword arguments", "--set"


#: Similarity of names from which one is a misspelling of the other, whatever other tools call something.
_TYPO = 0.85


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types that a field takes."""
    return set(get_args(annotation) or (annotation,))


class Section(BaseModel):
    """Base of all sections: frozen; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        """Accept only numbers for a numeric field: neither ``yes`` nor text in another notation."""
        field = cls.model_fields[str(info.field_name)]
        kinds = _kinds(field.annotation)
        if not kinds & {int, float}:
            return value
        if isinstance(value, bool):
            raise ValueError(f"found {config_spelling(value)}, expected a number")
        if isinstance(value, str) and str not in kinds and not _NUMBER.fullmatch(value):
            raise ValueError(f"found {shortened(value)}, expected a number")
        if isinstance(value, (int, float)) and abs(value) > MAX_NUMBER and abs(value) != math.inf:
            raise ValueError(f"found {shortened(value)}, expected {_limit(field, is_lower=value < 0)}")
        return value


def _limit(field: FieldInfo, *, is_lower: bool) -> str:
    """Return a description of the smallest or the largest value of a numeric field."""
    texts = {"ge": "at least", "gt": "more than"} if is_lower else {"le": "at most", "lt": "less than"}
    limits = [f"{text} {limit:,}" for name, text in texts.items() if (limit := _bound(field, name)) is not None]
    return limits[0] if limits else f"at {'least -' if is_lower else 'most '}{MAX_NUMBER:,}"


def _bound(field: FieldInfo, name: str) -> int | float | None:
    """Return a bound of a numeric field (``ge``, ``gt``, ``le`` or ``lt``), or None."""
    return next((bound for one in field.metadata if (bound := getattr(one, name, None)) is not None), None)


#: Source of rows: a file, folder, hub id or pattern, or several of these, read one after another.
DataSource = str | tuple[str, ...]


class DataConfig(Section):
    """Sources of the rows and names of their columns."""

    train: DataSource = Field(
        description="JSONL, CSV, Parquet, a folder of .txt, a `datasets` folder, a hub id, a pattern such as "
        "`train-*.parquet`, or a list of these"
    )
    valid: DataSource | float | None = Field(
        None, description="rows of the evaluation curve, which select the best step; a fraction is held out of train"
    )
    eval: DataSource | float | None = Field(
        0.1, description="rows that decide; a fraction (between 0 and 1) is held out of train, by group"
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=100,
        description="cross-validation instead of data.eval: number of parts, each of which is evaluated by a model "
        "that is trained on the others; the final model is trained on all rows",
    )
    fold: int | None = Field(
        None, ge=1, description="number of the one of data.folds that is evaluated; default: all, one after another"
    )

    encoding: str = Field("auto", description="codec of text files, such as cp1250; auto infers it for each file")
    delimiter: str | None = Field(
        None, description="character between the cells of CSV files; default: inferred for each file"
    )

    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse", description="rows that cannot be used stop the run, or are left out and counted"
    )

    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"
    label: str = "label"
    labels: str = "labels"
    label_names: list[str] | None = Field(
        None, description="names of the classes in their order, for labels written as numbers or 0/1 vectors"
    )
    label_separator: str | None = Field(
        None, min_length=1, description="separator of the labels in one cell of data.labels"
    )
    merge_labels: bool = Field(
        False,
        description="merge labels that differ only in case, whitespace and Unicode normal form, under their most "
        "frequent spelling",
    )
    source: str = "source"
    target: str = "target"
    question: str = "question"
    sql: str = "sql"
    db_id: str = "db_id"
    id: str | None = Field(None, description="column with row ids; default: file and line, or row")
    group: str | None = Field(None, description="column of groups; a split made by fulltune never divides a group")
    split: str | None = Field(
        None, description="column of data.train that marks the rows of train, validation (valid, dev) and test (eval)"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="columns that a task of a plug-in reads: role → column; default: the role"
    )
    seed: int | None = Field(None, ge=0, description="seed of a split made by fulltune; default: train.seed")

    databases: str | None = Field(
        None,
        description="text2sql: folder of SQLite files, <db_id>.sqlite or <db_id>/<db_id>.sqlite; or one SQLite file",
    )
    schemas: str | None = Field(
        None, description="text2sql: JSON file, db_id → CREATE statements; default: read from the database"
    )
    schema_in_prompt: Literal["full", "names", "none"] = Field(
        "full",
        description="text2sql: what prompts show of the schema: tables, columns, types and keys; names; or nothing",
    )
    instruction: str | None = Field(None, description="seq2seq, text2sql: text that precedes every input")
    source_language: str | None = Field(
        None, description="seq2seq, classification: code of the texts' language, for tokenizers that mark it"
    )
    target_language: str | None = Field(
        None, description="seq2seq: code of the answers' language, for tokenizers that mark it (NLLB, mBART, M2M-100)"
    )
    chat: Literal["auto", "on", "off"] = Field(
        "auto", description="use the tokenizer's chat template for prompt and completion"
    )
    chat_date: date | None = Field(
        None, description="today's date in chat templates that ask for it; default: the day of the run"
    )

    limit: int | None = Field(None, gt=0, description="use the first N rows of train")
    eval_limit: int | None = Field(None, gt=0, description="use the first N rows of eval")
    max_length: int | None = Field(
        None,
        gt=7,
        description="window in tokens; default: the model's limit, at most 512 (seq2seq and text2sql with a decoder "
        "768, causal-lm 1024)",
    )
    max_target_length: int = Field(
        256,
        gt=0,
        description="target window in tokens of an encoder-decoder; a decoder reserves as many for the answer, at "
        "most a third of its window",
    )
    max_truncated: float = Field(
        0.05, ge=0, le=1, description="highest fraction of rows that may lose their label to truncation"
    )
    allow_leaks: bool = Field(
        False,
        description="count rows of eval that also occur in train; default: they are left out, and more than 5% in "
        "files that you name stop the run",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_eval_with_folds(cls, raw: Any) -> Any:
        is_crossed = isinstance(raw, Mapping) and raw.get("folds") is not None and "eval" not in raw
        return {**raw, "eval": None} if is_crossed else raw

    @model_validator(mode="after")
    def _check_folds(self) -> DataConfig:
        if self.folds is None:
            if self.fold is not None:
                raise ValueError("data.fold is one of data.folds, which is not set: set it, or remove data.fold")
            if self.eval is None:
                raise ValueError("data.eval is null; expected rows that decide. Name a file or a fraction")
            return self
        given = {"data.eval": self.eval, "data.split": self.split, "data.eval_limit": self.eval_limit}
        if surplus := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"data.folds evaluates every row of train, and {' and '.join(surplus)} would select others. Remove "
                f"{'it' if len(surplus) == 1 else 'them'}, or data.folds"
            )
        if self.fold is not None and self.fold > self.folds:
            raise ValueError(f"data.fold is {self.fold}; expected at most data.folds, {self.folds}")
        return self

    @property
    def is_crossed(self) -> bool:
        """True if every row is evaluated once, by cross-validation."""
        return self.folds is not None and self.fold is None

    @field_validator("chat_date", mode="before")
    @classmethod
    def _date(cls, value: Any) -> Any:
        """Refuse numbers, which would count as seconds since 1970."""
        if isinstance(value, (int, float)):
            raise ValueError(f"found {shortened(value)}, expected a date such as 2026-01-31")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        if name != "auto" and not is_codec(name):
            fix = did_you_mean(name.lower(), ("auto", *CODECS)) or "write its name in Python"
            raise ValueError(f"data.encoding is {name!r}; expected auto, or a codec such as cp1250. {fix}")
        return name

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter)
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f"data.delimiter is {delimiter!r}; expected one character, such as ';'")
        return delimiter

    @field_validator("label_names")
    @classmethod
    def _distinct_names(cls, names: list[str] | None) -> list[str] | None:
        repeated = [name for name, count in Counter(names or ()).items() if count > 1]
        if repeated:
            raise ValueError(f"data.label_names has {repeated[0]!r} twice: write every class once")
        if names is not None and not (names and all(map(str.strip, names))):
            raise ValueError(f"data.label_names is {names}: write the name of every class")
        return names

    @field_validator("columns")
    @classmethod
    def _new_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        known = [role for role in columns if role in COLUMN_KEYS]
        if known:
            fix = f"write `data.{known[0]}: {columns[known[0]]}`"
            raise ValueError(f"data.columns names the column of {known[0]!r}: {fix}")
        return columns

    def column(self, role: str) -> str:
        """Return the name of the column with a role: of a built-in one, or of one that a plug-in adds."""
        return str(getattr(self, role)) if role in COLUMN_KEYS else self.columns.get(role, role)

    def columns_of(self, roles: Iterable[str], available: Container[str]) -> dict[str, str]:
        """Return the column of each role that rows have: the one of the config, or else one with the name of the role.

        Args:
            roles: Roles, such as the inputs of a task.
            available: Names of the columns of a file or a row.
        """
        known = {role: [name for name in (self.column(role), role) if name in available] for role in roles}
        return {role: names[0] for role, names in known.items() if names}

    @staticmethod
    def column_key(role: str) -> str:
        """Return the config key that names the column with a role."""
        return f"data.{role}" if role in COLUMN_KEYS else f"data.columns.{role}"


class TrainConfig(Section):
    """Options of training. All others are passed through `trainer`."""

    epochs: float = Field(3.0, gt=0, le=1_000_000)
    max_steps: int | None = Field(None, gt=0, description="stop after this many optimizer steps")
    batch_size: int = Field(8, gt=0, le=1_000_000, description="rows per micro-batch")
    accumulation: int = Field(1, gt=0, le=1_000_000, description="micro-batches per optimizer step")
    learning_rate: float = Field(
        LEARNING_RATES["full"], gt=0, le=1_000_000_000, description="default: LEARNING_RATES, by method"
    )
    scheduler: Literal["linear", "cosine", "constant"] = Field("cosine", description="schedule after warm-up")
    warmup: float = Field(0.06, ge=0, description="below 1: fraction of the steps; otherwise: number of steps")
    weight_decay: float = Field(0.01, ge=0, le=1000, description="not applied to biases and norms")
    max_grad_norm: float = Field(1.0, ge=0, description="0 turns clipping off")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    optimizer: str = Field("adamw", description="adamw, adamw-8bit, or any name that `TrainingArguments.optim` takes")
    gradient_checkpointing: bool = False
    evaluations: int = Field(4, ge=0, le=10_000, description="points of the evaluation curve; at most one per step")
    seed: int = Field(17, ge=0)
    seeds: int = Field(
        1, gt=0, le=1000, description="trainings with train.seed and the seeds after it; their mean is judged"
    )

    @field_validator("learning_rate")
    @classmethod
    def _rate(cls, value: float) -> float:
        if value < _MIN_RATE:
            raise ValueError(f"found {value:g}, expected at least {_MIN_RATE:.3g}: a lower rate changes no weight")
        return value


class BaselineConfig(Section):
    """Baselines that the tuned model is compared with."""

    skip: list[str] = Field(
        default_factory=list, description="baselines of the task to leave out; the record then names them"
    )
    time: float = Field(
        0.1,
        gt=0,
        le=1,
        description="highest fraction of the run's computation that one baseline may take; beyond 1,000 rows it then "
        "reads or answers random rows, and the record says so",
    )
    few_shot: int = Field(4, gt=0, description="examples from train (per class for classification with an encoder)")
    seed: int = Field(17, ge=0)


class EvaluationConfig(Section):
    """Options of evaluation."""

    batch_size: int = Field(16, gt=0, le=1_000_000)
    max_new_tokens: int = Field(
        128, gt=0, description="limit of a generated answer; the fraction that reaches it is reported"
    )
    continuations: int = Field(
        8,
        ge=0,
        description="causal-lm: random documents, of every group or folder, continued before and after training",
    )
    resamples: int = Field(2000, ge=100, le=100_000, description="bootstrap resamples")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    min_effect: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="smallest difference that counts as better or worse: 0.005 is half a point of a score between 0 "
        "and 1, and 0.5% of bits per byte",
    )
    sql_seconds: float = Field(2.0, gt=0, le=86_400, description="text2sql: time limit of one query")
    sql_match: Literal["strict", "spider"] = Field(
        "strict",
        description="text2sql: compare results with columns in order (strict), or as Spider's test suites do",
    )


class ForgettingConfig(Section):
    """Retention: abilities of the base model that the tuned model should keep."""

    probe: str = Field(
        "builtin", description="`builtin` (general text that ships with fulltune) or a file with a `text` column"
    )
    sets: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="additional retention sets by name: task and data, as in a config"
    )
    keep: list[str] | None = Field(
        None,
        description="languages of the probe that have a budget, e.g. [en, ru]; default: those of the data (`builtin`), "
        "all (any other probe)",
    )
    budget: float = Field(0.05, ge=0, description="highest accepted relative loss of retention")
    action: Literal["warn", "stop", "reject"] = "warn"
    limit: int = Field(200, gt=0, description="scored rows per set")


class DivergenceConfig(Section):
    """Detection of divergence: loss spikes and numbers that are not finite."""

    window: int = Field(50, gt=4, le=1_000_000, description="recent losses that a spike is measured against")
    threshold: float = Field(
        10.0, gt=0, description="a spike lies this many median absolute deviations above the median"
    )
    patience: int = Field(5, gt=0, description="consecutive spikes that count as divergence; fewer have recovered")
    retries: int = Field(2, ge=0, description="roll-backs before training stops")
    rate_factor: float = Field(0.3, gt=0, lt=1, description="factor on the learning rate at a roll-back")


class OverfittingConfig(Section):
    """Selection of the best step of the evaluation curve; step 0, the base model, is a candidate."""

    metric: str | None = Field(None, description="default: the deciding metric, or the loss if answers are generated")
    patience: int = Field(3, ge=0, description="evaluations without improvement before training stops; 0: never stops")
    min_delta: float = Field(0.0, ge=0, description="smallest change that counts as an improvement")


class GuardsConfig(Section):
    """Guards that watch training; null turns a guard off."""

    forgetting: ForgettingConfig | None = ForgettingConfig()
    divergence: DivergenceConfig | None = DivergenceConfig()
    overfitting: OverfittingConfig | None = OverfittingConfig()


class RegularizeConfig(Section):
    """Regularization towards the base model or against memorization; 0 turns a term off."""

    replay: float = Field(0.0, ge=0, lt=1, description="fraction of training sequences that are general text")
    replay_from: str = Field("base", description="`base` (text that the base generates) or a file with a `text` column")
    l2_sp: float = Field(0.0, ge=0, description="weight of the L2 distance to the base's weights")
    ewc: float = Field(0.0, ge=0, description="the same, weighted by the diagonal Fisher information of general text")
    distill: float = Field(0.0, ge=0, description="weight of KL(base, tuned) on general text")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate factor per layer, from the top down")
    dropout: float | None = Field(None, ge=0, lt=1, description="dropout of every layer; default: the model's own")
    r_drop: float = Field(0.0, ge=0, description="classification: weight of the KL between two dropout passes")


class CheckpointConfig(Section):
    """Checkpoints: a run that was killed resumes from its newest complete checkpoint."""

    every: int | None = Field(
        None, gt=0, description="optimizer steps between checkpoints; default: an eighth of the run, at least 10"
    )
    keep: int = Field(2, gt=0, description="number of newest checkpoints kept until the run's record is written")


class SpeedConfig(Section):
    """Optimizations that keep the results; the plan lists the active ones."""

    kernels: Literal["auto", "off"] = Field(
        "auto",
        description="fast float32 kernels on CPUs: matrix products (if faster), dropout, attention with dropout",
    )
    precision: Literal["float32", "bf16-mixed"] = Field(
        "float32", description="bf16-mixed: products in bfloat16, weights and optimizer in float32"
    )
    packing: Literal["auto", "off"] = Field(
        "auto", description="causal-lm: several documents per window, if the model can separate them"
    )
    unpad: Literal["auto", "off"] = Field(
        "auto", description="on CPUs: split micro-batches whose rows differ much in length"
    )
    batch_tokens: int | None = Field(
        None, gt=0, description="padded tokens per micro-batch, instead of train.batch_size rows"
    )


class PromoteConfig(Section):
    """Conditions for a version of the run to replace another in the registry."""

    require: Literal["improved", "not-worse"] = Field(
        "improved", description="what the version must be, compared with the current one on the same evaluation rows"
    )
    margin: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="not-worse: a loss of this size is excluded; 0.01 is a point of a score between 0 and 1, and 1% of "
        "bits per byte",
    )


class AdapterConfig(Section):
    """Options of the methods with adapters; `full` reads none of them."""

    rank: int = Field(16, gt=0, le=65_536, description="lora, qlora: rank of the two factors")
    alpha: float | None = Field(None, gt=0, description="lora, qlora: scale of their product; default: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="lora, qlora: dropout before the first factor")
    targets: list[str] | str = Field(
        "all-linear", description="lora, qlora: names of the adapted layers, or `all-linear` (all except the head)"
    )
    prompt_tokens: int = Field(20, gt=0, le=65_536, description="prompt-tuning: length of the prompt")
    prompt_text: str | None = Field(None, description="prompt-tuning: text whose embeddings initialize the prompt")


class HeadConfig(Section):
    """Options of the classification head."""

    start: Literal["auto", "probe"] = Field(
        "auto",
        description="first weights: those of the checkpoint, or random ones (`auto`), or those of a logistic "
        "regression on what the frozen model gives the head (`probe`), scaled down",
    )


class Config(Section):
    """Config of a run. See `docs/config.md` for every key."""

    model: str = Field(
        description="hub id, local folder, GGUF file, run id, NAME, NAME@ALIAS or NAME@N of the registry, "
        "starter:NAME, or package:NAME/PATH"
    )
    task: str = Field(description="causal-lm, classification, seq2seq, text2sql")
    method: str = "full"
    data: DataConfig
    train: TrainConfig = TrainConfig()
    baselines: BaselineConfig = BaselineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guards: GuardsConfig = GuardsConfig()
    regularize: RegularizeConfig = RegularizeConfig()
    checkpoints: CheckpointConfig | None = CheckpointConfig()
    speed: SpeedConfig = SpeedConfig()
    adapter: AdapterConfig = AdapterConfig()
    head: HeadConfig = HeadConfig()
    promote: PromoteConfig = PromoteConfig()
    trainer: dict[str, Any] = Field(
        default_factory=dict, description="any field of TrainingArguments; names are checked"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, raw: Any) -> Any:
        """Replace empty sections by their defaults, and set the method's default learning rate.

        A section for which null has a meaning of its own is kept.
        """
        if not isinstance(raw, Mapping):
            return raw
        raw = {name: part for name, part in raw.items() if part is not None or name == "checkpoints"}
        train = raw.get("train", {})
        rate = LEARNING_RATES.get(str(raw.get("method", "full")), LEARNING_RATES["full"])
        if isinstance(train, TrainConfig) and "learning_rate" not in train.model_fields_set:
            return {**raw, "train": train.model_copy(update={"learning_rate": rate})}
        if isinstance(train, Mapping) and "learning_rate" not in train:
            return {**raw, "train": {**train, "learning_rate": rate}}
        return raw

    @model_validator(mode="after")
    def _check_fractions(self) -> Config:
        for name in ("valid", "eval"):
            fraction = getattr(self.data, name)
            if isinstance(fraction, float) and not 0 < fraction < 1:
                is_count = name == "eval" and fraction > 1
                fix = "For a number of rows set data.eval_limit" if is_count else "Write the name of a file as text"
                raise ValueError(f"data.{name} is {fraction:g}; expected a fraction between 0 and 1, or a file. {fix}")
        if self.data.is_crossed and self.train.seeds > 1:
            raise ValueError(
                f"data.folds and train.seeds ask for {self.data.folds} × {self.train.seeds} trainings; expected one of "
                "them. Remove train.seeds"
            )
        held_out = sum(fraction for fraction in (self.data.valid, self.data.eval) if isinstance(fraction, float))
        if held_out >= 1:
            raise ValueError(
                f"data.valid and data.eval hold out {held_out:g} of train; expected a sum below 1. Lower one of them"
            )
        return self


#: A config, a mapping of its keys, or the path of a YAML or JSON file.
ConfigSource = Config | Mapping[str, Any] | str | Path


def load_config(
    source: ConfigSource | None = None,
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, Any] | None = None,
    base: Path | None = None,
) -> Config:
    """Read a config from a YAML or JSON file or a mapping, then apply options and ``a.b=value`` overrides.

    Relative data paths are resolved against the working directory first, then against the folder of the file.

    Args:
        source: The config; None if ``options`` has all of it.
        overrides: ``a.b=value`` texts, applied last.
        options: Sections and values that are merged over the config key by key, such as ``{"train": {"epochs": 1}}``.
        base: Folder for relative data paths; by default that of the file.

    Raises:
        ConfigError: The file is missing or not YAML; a key is unknown; a value has the wrong type. All problems at
            once.
    """
    raw, where = _read({} if source is None and options is not None else source)
    merged = _plain(_without_objects(_merged(raw, options or {})))
    overridden, problems = list[str](), list[Problem]()
    for override in [overrides] if isinstance(overrides, str) else overrides:
        try:
            overridden.append(_apply(merged, override))
        except ConfigError as error:
            problems += error.problems
    try:
        check_texts(merged, where)
        config = Config.model_validate(merged)
    except ValidationError as error:
        problems += _joined(
            [
                _problem(item, _origin(_keys(item), where, overridden, options if raw else None))
                for item in error.errors()
            ]
        )
    if problems:
        raise ConfigError([*problems, *_later_problems(merged, where)])
    folder = base or (Path(where).parent if where else None)
    return _resolve_paths(config, folder) if folder else config


def _later_problems(raw: Mapping[str, Any], where: str) -> list[Problem]:
    """Return problems that are otherwise found once the config is valid: names of plug-ins, and of trainer options."""
    problems = []
    for kind in get_args(plugins.PluginKind):
        name = raw.get(kind)
        if isinstance(name, str) and name not in plugins.names(kind):
            fix = did_you_mean(name, plugins.names(kind)) or "use one of these"
            expected = f"one of {', '.join(plugins.names(kind))}"
            problems.append(Problem(f"there is no {kind} {name!r}", expected, fix, where, kind))
    trainer = raw.get("trainer")
    for name in trainer if isinstance(trainer, Mapping) else ():
        key = key_for(str(name))
        if key and key != f"trainer.{name}":
            problems.append(Problem(f"{key} sets this", fix=f"use {key}", where=where, field=f"trainer.{name}"))
    return problems


def dump_config(config: Config) -> str:
    """Return the config as YAML with every key, so that a run can be repeated from its folder."""
    return to_yaml(config.model_dump(mode="json"))


def refuse_folds(config: Config, what: str) -> None:
    """Check that a config names rows that decide, for what cannot cross-validate.

    Raises:
        ConfigError: It has ``data.folds``.
    """
    if config.data.is_crossed:
        raise ConfigError(
            f"cross-validation ({config.data.folds} folds) in {what}",
            expected="rows that decide",
            fix="remove data.folds (or set it to null) and name them in data.eval",
            field="data.folds",
        )


def with_one_seed(config: Config) -> Config:
    """Return the config of one of the trainings that ``train.seeds`` asks for."""
    return config.model_copy(update={"train": config.train.model_copy(update={"seeds": 1})})


def with_validation_rows(config: Config) -> Config:
    """Return the config for a search, which needs validation rows and the same split for every ``train.seed``.

    Without ``data.valid``, a tenth of train is held out.
    """
    data = {
        "valid": 0.1 if config.data.valid is None else config.data.valid,
        "seed": config.train.seed if config.data.seed is None else config.data.seed,
    }
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def _read(source: ConfigSource | None) -> tuple[dict[str, Any], str]:
    """Return a config as a mapping, and its file if it is one."""
    if isinstance(source, Config):
        return _without_usual_rate(source), ""
    if isinstance(source, Mapping):
        return dict(source), ""
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(
            f"an object of class {type(source).__name__}",
            expected="the path of a YAML or JSON file, a mapping, or a Config",
            fix="pass one of these",
        )
    path = Path(source)
    return read_mapping(path), str(path)


def _without_usual_rate(config: Config) -> dict[str, Any]:
    """Return the config as a mapping, without a learning rate that is the default of its method.

    Another method then gets its own default.
    """
    raw: dict[str, Any] = config.model_dump(mode="json")
    if config.train.learning_rate == LEARNING_RATES.get(config.method, LEARNING_RATES["full"]):
        del raw["train"]["learning_rate"]
    return raw


def _merged(raw: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with options merged over it: sections key by key, other values replaced."""
    merged = dict(raw)
    for name, value in options.items():
        before, after = _plain_section(merged.get(name)), _plain_section(value)
        both = isinstance(before, Mapping) and isinstance(after, Mapping)
        merged[name] = _merged(before, after) if both else value
    return merged


def _plain_section(value: Any) -> Any:
    """Return the values that were set in a section; anything else is returned as it is."""
    return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else value


def _origin(keys: Sequence[str], where: str, overridden: Sequence[str], options: Mapping[str, Any] | None) -> str:
    """Return where the value below these keys was given: in the file, in options or in overrides."""
    if any(f"{'.'.join(keys)}.".startswith(f"{key}.") for key in overridden):
        return _OVERRIDES
    node: Any = options or {}
    for key in keys:
        node = _plain_section(node)
        if not isinstance(node, Mapping):
            break
        if key not in node:
            return where
        node = node[key]
    return _OPTIONS if keys and options else where


def _apply(raw: dict[str, Any], override: str) -> str:
    """Apply an override to the mapping, and return its key."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"found {override!r}", expected="a.b=value", where=_OVERRIDES, fix="write it like train.epochs=1"
        )
    node: Any = raw
    *parents, last = (part.strip() for part in key.split("."))
    if not all([*parents, last]):
        fix = "write one dot between two keys, as in train.epochs=1"
        raise ConfigError(f"an empty key in {shortened(key)}", expected="a.b=value", where=_OVERRIDES, fix=fix)
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{part!r} in {key!r} is a value", expected="a section", where=_OVERRIDES)
    if not value.strip():
        fix = "write the value, `null` for none, or '\"\"' for an empty text"
        raise ConfigError(
            f"found {override!r}, without a value after the =", expected="a.b=value", where=_OVERRIDES, fix=fix
        )
    node[last] = read_value(value, _OVERRIDES)
    return ".".join([*parents, last])


def _without_objects(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the mapping after writing rows in memory to files; it is not too large.

    Raises:
        ConfigError: The model, or a split of the data, is an object that no config can name.
    """
    check_model_reference(raw.get("model"))
    data = _plain_section(raw.get("data"))
    if not isinstance(data, Mapping):
        check_size(raw)
        return raw
    data = with_splits(data)
    given = [name for name in ("train", "valid", "eval") if name in data]
    splits = dict[str, Any]()
    problems = list[Problem]()
    for name in given:
        try:
            splits[name] = as_source(data[name], f"data.{name}", _columns(data))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    plain = {**raw, "data": {**data, **splits}}
    check_size(plain)
    return plain


def _columns(data: Mapping[str, Any]) -> set[str]:
    """Return the names of all columns that the run may read."""
    named = {role: data.get(role) or DataConfig.model_fields[role].default for role in COLUMN_KEYS}
    added = data.get("columns")
    names = [*named.values(), *(added.values() if isinstance(added, Mapping) else ())]
    return {name for name in names if isinstance(name, str)}


def _plain(value: Any) -> Any:
    """Return a copy that consists of dicts with string keys, lists and values, with paths as strings.

    Numbers of NumPy become those of Python.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, BaseModel):
        return _plain_section(value)
    if isinstance(value, Real) and not isinstance(value, (bool, int, float)):
        return int(value) if isinstance(value, Integral) else float(value)
    return str(value) if isinstance(value, Path) else value


def _joined(problems: Sequence[Problem]) -> list[Problem]:
    """Return one problem per field: pydantic reports one for each type that a field accepts."""
    by_field: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        key = (problem.field, problem.found)
        first = by_field.setdefault(key, problem)
        if first is not problem and problem.expected not in first.expected:
            by_field[key] = replace(first, expected=f"{first.expected} or {problem.expected}")
    return list(by_field.values())


def _is_type(part: Any) -> bool:
    """Return True if a part of a pydantic location names a member of a union, not a key."""
    return isinstance(part, str) and (part in ("str", "float", "int") or "[" in part)


def _keys(item: Any) -> list[str]:
    """Return the keys that lead to a value that pydantic reports; an unknown key may look like a type."""
    *parents, last = item["loc"] or [""]
    keys = [str(part) for part in parents if not _is_type(part)]
    is_key = item["type"] == "extra_forbidden" or not _is_type(last)
    return [*keys, str(last)] if is_key and item["loc"] else keys


def _problem(item: Any, where: str) -> Problem:
    """Convert a pydantic error to a problem; an unknown key gets a suggestion."""
    path = ".".join(_keys(item))
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        known = _known_keys(parents)
        hint = _right_key(str(key), parents, known)
        listed = ", ".join(sorted(known))
        return Problem("unknown key", f"one of {listed}", hint or "remove it, or see docs/config.md", where, path)
    if item["type"] == "missing":
        return Problem("missing", "a value", f"add `{path}:` to the config", where, path)
    if item["type"] == "value_error":
        return Problem(str(item["ctx"]["error"]), where=where, field=path)
    is_unquoted = item["type"] == "string_type" and isinstance(item["input"], (bool, int, float))
    fix = "put it in quotes if it is a name" if is_unquoted else ""
    return Problem(config_spelling(item["input"]), expected_input(item), fix, where, path)


def _right_key(key: str, parents: Sequence[Any], known: set[str]) -> str:
    """Return the fix for an unknown key: the section that has it, our name for that of another tool, or a close one."""
    sections = [name for name in _sections_with(key) if name != ".".join(map(str, parents))]
    if sections:
        return f"write it as {' or '.join(f'{name}.{key}' for name in sections)}"
    close = closest(key, known)
    if difflib.SequenceMatcher(None, key.lower(), close).ratio() >= _TYPO:
        return f"did you mean {close!r}?"
    elsewhere = similar_to(key)
    return instead_of(key) or did_you_mean(key, known) or (f"did you mean {elsewhere}?" if elsewhere else "")


def key_named(name: str) -> str:
    """Return the config key, with its section, that is called so here or by another tool; an empty text if none is."""
    if name in Config.model_fields:
        return name
    return next((f"{section}.{name}" for section in _sections_with(name)), "") or key_for(name)


def _sections_with(key: str, section: type[Section] | None = None, path: str = "") -> Iterator[str]:
    """Yield the paths of the sections that have a key of this name."""
    for name, field in (section or Config).model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None:
            here = f"{path}.{name}".lstrip(".")
            yield from [here] if key in inner.model_fields else []
            yield from _sections_with(key, inner, here)


def _section_of(annotation: Any) -> type[Section] | None:
    """Return the class of a section, which may be null; None for any other type."""
    return next((kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, Section)), None)


def _known_keys(parents: Sequence[Any]) -> set[str]:
    schema: Any = Config
    for part in parents:
        annotation = schema.model_fields[part].annotation
        # A section that may be null is a union of itself and None.
        schema = next((one for one in get_args(annotation) if one is not NoneType), annotation)
    return set(schema.model_fields)


def _resolve_paths(config: Config, folder: Path) -> Config:
    """Resolve paths that exist only next to the config file."""

    def near(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(near, value))
        if isinstance(value, str) and not paths.matches(value) and paths.matches(str(folder / value)):
            return str(folder / value)
        return value

    names = ("train", "valid", "eval", "databases", "schemas")
    data = config.data.model_copy(update={name: near(getattr(config.data, name)) for name in names})
    return config.model_copy(update={"data": data, "model": near(config.model)})
