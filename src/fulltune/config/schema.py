"""Define the sections of the config: frozen pydantic models with the same names in YAML, JSON and Python."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from datetime import date
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from fulltune.errors import did_you_mean, shortened
from fulltune.runtime.codecs import CODECS, is_codec
from fulltune.runtime.validation import config_spelling

#: Keys of `data` that name a column.
COLUMN_KEYS = (
    *("text", "prompt", "completion", "messages", "label", "labels", "source", "target", "question", "sql", "db_id"),
    *("id", "group", "split"),
)

#: Largest number in a config: the largest seed that NumPy accepts.
MAX_NUMBER = 2**32 - 1

#: Most trainings of one config with different seeds.
MOST_SEEDS = 1000

#: Smallest normal number in float32: steps with a smaller learning rate change no weight.
_MIN_RATE = 2.0**-126

#: Numbers in the notations of YAML 1.2, which are taken from quoted text too.
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def kinds_of(annotation: Any) -> set[Any]:
    """Return the plain types that a field takes."""
    return set(get_args(annotation) or (annotation,))


def _known(name: str, value: float | None) -> float:
    """Return a value that depends on the model."""
    if value is None:
        raise RuntimeError(f"train.{name} is not known before the model is: read it from the config of a job")
    return value


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
        kinds = kinds_of(field.annotation)
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
    messages: str | None = Field(
        None, description="column with chats; default: messages, if rows have no other input (causal-lm, seq2seq)"
    )
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
        description="merge labels that differ only in case, whitespace and Unicode normal form, under their name "
        "in data.label_names, or their most frequent spelling",
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
    seed: int | None = Field(
        None, ge=0, description="seed of a split made by fulltune, by default train.seed, and of samples, by default 0"
    )

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

    limit: int | None = Field(None, gt=0, description="use a sample of N rows of train")
    eval_limit: int | None = Field(None, gt=0, description="use a sample of N rows of eval, whole groups of data.group")
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
        return str(getattr(self, role) or role) if role in COLUMN_KEYS else self.columns.get(role, role)

    def has_chats(self, inputs: Iterable[str], available: Container[str]) -> bool:
        """Return True if a task reads chats: if the config names their column, or rows have no other input.

        Args:
            inputs: The other roles of an input.
            available: Names of the columns of the rows.
        """
        is_alone = not any(self.column(role) in available for role in inputs)
        return self.messages is not None or (self.column("messages") in available and is_alone)

    def columns_of(self, roles: Iterable[str], available: Container[str]) -> dict[str, str]:
        """Return the column of each role that rows have: the one of the config, or else one with the name of the role.

        Args:
            roles: Roles, such as the inputs of a task.
            available: Names of the columns of a file or a row.
        """
        known = {role: [name for name in (self.column(role), role) if name in available] for role in roles}
        named = {role: names[0] for role, names in known.items() if names}
        if "messages" in named and len(named) > 1:  # one input per row
            return {role: name for role, name in named.items() if (role == "messages") == (self.messages is not None)}
        return named

    @staticmethod
    def column_key(role: str) -> str:
        """Return the config key that names the column with a role."""
        return f"data.{role}" if role in COLUMN_KEYS else f"data.columns.{role}"


class TrainConfig(Section):
    """Options of training. All others are passed through `trainer`."""

    epochs: float | None = Field(None, gt=0, le=1_000_000, description="default: by model and number of rows")
    max_steps: int | None = Field(None, gt=0, description="stop after this many optimizer steps")
    batch_size: int = Field(8, gt=0, le=1_000_000, description="rows per micro-batch")
    accumulation: int = Field(1, gt=0, le=1_000_000, description="micro-batches per optimizer step")
    learning_rate: float | None = Field(
        None, gt=0, le=1_000_000_000, description="default: by method, family and size of the model"
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
        1, gt=0, le=MOST_SEEDS, description="trainings with train.seed and the seeds after it; their mean is judged"
    )

    @property
    def rate(self) -> float:
        """The learning rate, in the config of a job, where a default is replaced by its value."""
        return _known("learning_rate", self.learning_rate)

    @property
    def passes(self) -> float:
        """The epochs, in the config of a job, where a default is replaced by its value."""
        return _known("epochs", self.epochs)

    @field_validator("learning_rate")
    @classmethod
    def _check_rate(cls, value: float | None) -> float | None:
        if value is not None and value < _MIN_RATE:
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


class SamplingConfig(Section):
    """How ``predict``, ``load`` and ``compare --ask`` continue texts (causal-lm); the evaluation is greedy."""

    temperature: float = Field(
        0.0, ge=0, le=10, description="causal-lm: 0 writes the most likely token, 1 draws tokens by their probability"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="draw only from the most likely tokens with this probability")
    seed: int = Field(0, ge=0, description="seed of the draw; a text and a seed give one continuation")

    @model_validator(mode="after")
    def _check_drawn(self) -> SamplingConfig:
        if self.temperature == 0 and (self.top_p != 1 or self.seed != 0):
            surplus = "top_p" if self.top_p != 1 else "seed"
            raise ValueError(
                f"generation.{surplus} has no effect while generation.temperature is 0; expected a temperature above "
                "0, such as 0.8"
            )
        return self


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
    keep: int = Field(
        2,
        gt=0,
        description="number of checkpoints, the best one and the newest, kept until the run's record is written",
    )


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
    generation: SamplingConfig = SamplingConfig()
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
        """Replace empty sections by their defaults.

        A section for which null has a meaning of its own is kept.
        """
        if not isinstance(raw, Mapping):
            return raw
        return {name: part for name, part in raw.items() if part is not None or name == "checkpoints"}

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
