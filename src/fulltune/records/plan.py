"""Define the plan of a run: what it does, and the memory and time that it takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fulltune.records.base import Model
from fulltune.records.data import DataSummary


class Detectable(Model):
    """The smallest difference that the evaluation rows detect in four of five cases, expected before the run.

    Attributes:
        rows: Evaluation rows that decide.
        metric: The deciding metric.
        value: The difference, as a fraction for metrics that are 0 or 1 on a row.
        unit: ``fraction``, or ``standard deviations`` of the differences of single rows.
        changed: Fraction of rows that is assumed to become right or wrong; None for ``standard deviations``.
        groups: Number of groups of these rows (``data.group``), each of which is assumed to change as a whole; 0
            without groups.
        ungrouped: The same as ``value`` if the rows of a group were independent of each other; None without groups.
    """

    rows: int
    metric: str
    value: float
    unit: Literal["fraction", "standard deviations"]
    changed: float | None = None
    groups: int = 0
    ungrouped: float | None = None


class Plan(Model):
    """A run in numbers.

    Attributes:
        task, method, model: As in the config.
        rows: Rows per split (``train``, ``eval``, and ``valid`` if there is one).
        sequences: Training sequences per epoch (a long document gives several).
        tokens: Tokens of these sequences, without padding.
        steps_per_epoch, total_steps, warmup_steps: Optimizer steps, as the trainer counts them.
        effective_batch: Sequences per optimizer step; their mean if ``speed.batch_tokens`` makes the batches.
        padding: Fraction of padding in the inputs of training: of ``random`` batches, and of those that are ``used``;
            packing comes on top.
        parameters: Parameters of the model, all of them trained by the ``full`` method.
        memory_bytes: Lower bound on the memory of training; activations come on top.
        machine_bytes: Memory that this process may use; None if unknown.
        memory: Bytes at the peak of training, by part; empty if it was not estimated.
        is_measured: ``memory`` was measured; otherwise it is an estimate from counts.
        seconds: Wall time of a run, by stage; empty if nothing was measured.
        rough_seconds: Wall time of training alone on a free machine, by a formula; None if ``seconds`` were measured.
        waiting: Fraction of the measuring in which this process waited for a core that other programs used: on a free
            machine, ``seconds`` are shorter by about this fraction.
        cores: Cores that the measuring used on average; None if nothing was measured.
        baselines: Systems that are scored without training.
        evaluations: Optimizer steps after which the evaluation curve gets a point.
        fast_paths: Kernels that training uses.
        too_long: Sentences about rows, prompts and answers that do not fit into the model's positions.
        warnings: Sentences for the other warnings of the audit.
        data: Truncation, classes, spelling of labels, padding, and rows of eval that also occur in train.
        trainings: Trainings that the config asks for: ``train.seeds``, or the folds and the final one; ``seconds`` are
            those of all of them.
        folds: ``data.folds``; None without cross-validation.
        detectable: The smallest effect that the evaluation rows can show; None if the metric is not known before the
            run.
        chosen: Sentences for the options that were chosen by model and rows, because the config leaves them out.
        advice: Sentences of advice; none of them stops a run.
    """

    task: str
    method: str
    model: str
    rows: dict[str, int]
    sequences: int
    tokens: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    effective_batch: int
    parameters: int
    memory_bytes: int
    machine_bytes: int | None
    baselines: tuple[str, ...]
    evaluations: tuple[int, ...]
    advice: tuple[str, ...]
    padding: dict[str, float] = Field(default_factory=dict)
    memory: dict[str, int] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    rough_seconds: float | None = None
    waiting: float = 0.0
    cores: float | None = None
    fast_paths: tuple[str, ...] = ()
    too_long: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    data: DataSummary = DataSummary()
    detectable: Detectable | None = None
    is_measured: bool = True
    trainings: int = 1
    folds: int | None = None
    chosen: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int | None:
        """Predicted peak of the memory; None if it was not estimated."""
        return sum(self.memory.values()) or None

    @property
    def core_seconds(self) -> float | None:
        """Predicted seconds of all threads together, which other programs hardly change; None if unknown."""
        total = self.total_seconds
        return None if total is None or self.cores is None else total * self.cores

    @property
    def total_seconds(self) -> float | None:
        """Predicted wall time; None if nothing was measured."""
        return sum(self.seconds.values()) or None
