"""What searches for settings and comparisons of methods (``methods.json``) leave behind."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fulltune.records.run import Comparison, Model, Outcome, Score

SCHEMA = 1


#: What a key of a config may be set to by a search.
Value = bool | int | float | str | None


class Tried(Model):
    """One trial of a search.

    Attributes:
        number: From 0, in the order of the trials.
        settings: Dotted names of config keys and their values.
        value: The best value on the validation rows; NaN where there is none.
        state: ``whole``, ``pruned`` (ended early, for it fell behind) or ``broke``.
        seconds: Wall time of training.
        tokens: Input tokens seen.
        reason: Why it broke.
    """

    number: int
    settings: dict[str, Value]
    value: float
    state: Literal["whole", "pruned", "broke"]
    seconds: float
    tokens: int
    reason: str = ""


class SeedRun(Model):
    """A run with the chosen rate: an ordinary run folder holds the rest.

    ``memory_bytes`` is the peak of resident memory of the run's own process while it trained; ``device_bytes`` that of
    an accelerator, 0 without one. ``retention`` is the relative loss of each ability (above 0 is worse).
    """

    seed: int
    run_id: str
    score: Score
    outcome: Outcome
    base_kept: bool
    tokens: int
    seconds: float
    tokens_per_second: float
    memory_bytes: int
    device_bytes: int
    optimizer_bytes: int
    disk_bytes: int
    retention: dict[str, float]
    warnings: tuple[str, ...] = ()


class MethodResult(Model):
    """A method.

    Attributes:
        method: Its name.
        status: ``measured``, ``does not apply`` (to this model, task or machine) or ``failed``; the latter two have a
            ``reason`` and no numbers.
        rates: Trials of the rates, ascending.
        rate: The one chosen on the validation rows.
        at_edge: The chosen rate is the lowest or highest tried, so that a better one may lie outside.
        trainable, total: Parameters.
        memory_bytes: The largest peak of its runs: of the accelerator where there is one, else of the process.
        optimizer_bytes, seconds, tokens_per_second, tokens, disk_bytes: Means over its runs; ``disk_bytes`` is what
            must be kept beside the base.
        score: Mean over the seeds on the evaluation rows; its interval tells of rows and seeds.
        spread: Standard deviation between seeds; NaN with one.
        against: Minus the reference, paired by row; None for the reference itself.
        retention: Relative loss of each ability, mean over the seeds.
        runs: One a seed.
    """

    method: str
    status: Literal["measured", "does not apply", "failed"]
    reason: str = ""
    rates: tuple[Tried, ...] = ()
    rate: float | None = None
    at_edge: bool = False
    trainable: int = 0
    total: int = 0
    memory_bytes: int = 0
    optimizer_bytes: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    tokens: int = 0
    disk_bytes: int = 0
    score: Score | None = None
    spread: float = float("nan")
    against: Comparison | None = None
    retention: dict[str, float] = Field(default_factory=dict)
    runs: tuple[SeedRun, ...] = ()

    @property
    def worst_retention(self) -> tuple[str, float] | None:
        """The ability that lost most, and how much; None where nothing was asked."""
        return max(self.retention.items(), key=lambda item: item[1], default=None)


class SystemResult(Model):
    """A system without training on the same rows; ``against`` the reference as for methods."""

    system: str
    score: Score
    against: Comparison | None


class MethodComparison(Model):
    """Which method for these rows?

    Attributes:
        schema_version: Of this file.
        fulltune, created, machine: What made it, when and where.
        task, model: As the config names them.
        metric, label, percent, direction: What decides, on the evaluation rows.
        objective: What chose the rates, on the validation rows.
        confidence: Of all intervals.
        rows: Rows a split.
        steps: Optimizer steps of every training, the same for all.
        seeds: Of the runs.
        reference: The method that others are compared with.
        methods: In the order asked for.
        baselines: Systems without training.
        recommended: A method, or None where nothing can be recommended.
        headline: The answer in a sentence or two.
        notes: What to know before trusting it.
        folder: Where ``methods.html`` lies.
    """

    schema_version: int = Field(default=SCHEMA, alias="schema")
    fulltune: str
    created: str
    machine: str
    task: str
    model: str
    metric: str
    label: str
    percent: bool
    direction: Literal["higher", "lower"]
    objective: str
    confidence: float
    rows: dict[str, int]
    steps: int
    seeds: tuple[int, ...]
    reference: str
    methods: tuple[MethodResult, ...]
    baselines: tuple[SystemResult, ...]
    recommended: str | None
    headline: str
    notes: tuple[str, ...]
    folder: str

    model_config = Model.model_config | {"populate_by_name": True}

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, by_alias=True) + "\n"
