"""Define the records of searches for settings and of comparisons of methods (``methods.json``)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fulltune.records.run import Comparison, Model, Outcome, Score

SCHEMA = 1


#: Type of a config value that a search may set.
Value = bool | int | float | str | None


class Tried(Model):
    """One trial of a search.

    Attributes:
        number: From 0, in the order of the trials.
        settings: Dotted names of config keys and their values.
        value: The best value on the validation rows; NaN where there is none.
        state: ``whole`` (complete), ``pruned`` (stopped early because it fell behind) or ``broke`` (failed).
        seconds: Wall time of training.
        tokens: Input tokens seen.
        reason: The cause of its failure.
    """

    number: int
    settings: dict[str, Value]
    value: float
    state: Literal["whole", "pruned", "broke"]
    seconds: float
    tokens: int
    reason: str = ""


class SeedRun(Model):
    """A run with the chosen learning rate; its run folder holds the rest.

    ``memory_bytes`` is the peak of resident memory of the run's own process while it trained; ``device_bytes`` that of
    an accelerator, 0 without one. ``retention`` is the relative loss of each ability (above 0 is worse), and
    ``retention_interval`` its interval.
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
    retention_interval: dict[str, tuple[float, float]] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class MethodResult(Model):
    """Results of one method.

    Attributes:
        method: Its name.
        status: ``measured``, ``does not apply`` (to this model, task or machine) or ``failed``; the latter two have a
            ``reason`` and no numbers.
        rates: Trials of the learning rates, ascending.
        rate: The learning rate chosen on the validation rows.
        at_edge: True if the chosen rate is the lowest or highest tried: a better one may be outside that range.
        trainable, total: Numbers of parameters.
        memory_bytes: The largest peak of its runs: of the accelerator if there is one, otherwise of the process.
        optimizer_bytes, seconds, tokens_per_second, tokens, disk_bytes: Means over its runs; ``disk_bytes`` is the
            size of what must be stored in addition to the base.
        score: Mean over the seeds on the evaluation rows; its interval covers rows and seeds.
        spread: Standard deviation between seeds; NaN with one.
        against: Difference from the reference, paired by row; None for the reference itself.
        retention: Relative loss of each ability, mean over the seeds.
        retention_interval: Its interval over rows and seeds.
        runs: One per seed.
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
    retention_interval: dict[str, tuple[float, float]] = Field(default_factory=dict)
    runs: tuple[SeedRun, ...] = ()

    @property
    def worst_retention(self) -> tuple[str, float] | None:
        """The ability with the largest loss, and that loss; None if no ability was measured."""
        return max(self.retention.items(), key=lambda item: item[1], default=None)


class SystemResult(Model):
    """A system without training, scored on the same rows; ``against`` has the same meaning as for methods."""

    system: str
    score: Score
    against: Comparison | None


class MethodComparison(Model):
    """A comparison of methods on the same rows.

    Attributes:
        schema_version: Version of this file's schema.
        fulltune, created, machine: Version of fulltune, time (UTC) and machine.
        task, model: As the config names them.
        metric, label, percent, direction: The deciding metric, on the evaluation rows.
        objective: The metric that chose the learning rates, on the validation rows.
        confidence: Confidence level of all intervals.
        rows: Rows per split.
        steps: Optimizer steps of every training, the same for all.
        seeds: Seeds of the runs.
        reference: The method that others are compared with.
        methods: Results in the requested order.
        baselines: Systems without training.
        recommended: Name of a method, or None if none can be recommended.
        headline: The conclusion in one or two sentences.
        notes: Caveats.
        folder: The folder of ``methods.html``.
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
