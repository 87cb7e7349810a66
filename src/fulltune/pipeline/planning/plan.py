"""Plan a run: steps, tokens, memory, and every problem at once.

:func:`build_plan` is a pure function of counts, so it can be used before anything is loaded for training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fulltune.config import BaselineConfig, Config, EvaluationConfig, TrainConfig
from fulltune.errors import ConfigError, Problem
from fulltune.metrics.base import Metric
from fulltune.metrics.power import expected_detectable
from fulltune.records.plan import Detectable, Plan
from fulltune.tasks.base import Example
from fulltune.training.advice import advice, advice_on_choice
from fulltune.training.arguments import evaluation_steps, warmup_steps
from fulltune.training.arguments import steps_per_epoch as steps_per_epoch
from fulltune.training.arguments import total_steps as total_steps
from fulltune.training.regularization.costs import advice_on_regularizers, extra_copies

if TYPE_CHECKING:
    from fulltune.tasks.dataset import Data

#: Least bytes per parameter in FP32 with AdamW: the weight, its gradient, and AdamW's two moments, 4 bytes each
#: (moments: Kingma & Ba 2015, Algorithm 1; the sum: Rajbhandari et al. 2020, "ZeRO", section 3.1, without its FP16
#: copies). Activations come on top.
BYTES_PER_PARAMETER = 16

#: Fraction of evaluation rows that are assumed to become right or wrong by tuning. Between systems that differ by a few
#: points it is usually between a tenth and a third.
CHANGED = 0.2

#: Deciding metrics that are 0 or 1 on a row, or close to the mean of one (macro-F1 and accuracy).
_EXACT = ("accuracy", "macro_f1", "execution_accuracy", "spider_accuracy")


@dataclass(frozen=True)
class RowCounts:
    """Rows of the splits.

    Attributes:
        train, eval, valid: Rows per split; ``valid`` is 0 without such a split.
        unscored: Rows of eval that cannot be scored.
        left_out: Rows of eval that do not decide, because they also occur in train.
        groups: Sizes of the groups of the other rows of eval; empty without groups.
    """

    train: int
    eval: int
    valid: int = 0
    unscored: int = 0
    left_out: int = 0
    groups: Sequence[int] = ()

    @classmethod
    def of(cls, data: Data, left_out: Collection[str], unscored: int) -> RowCounts:
        """Count the rows of all splits.

        Args:
            data: The splits.
            left_out: Ids of the rows of eval that do not decide.
            unscored: Rows of eval that cannot be scored.
        """
        return cls(
            train=len(data.train.examples),
            eval=len(data.eval.examples),
            valid=len(data.valid.examples) if data.valid else 0,
            unscored=unscored,
            left_out=len(left_out),
            groups=_group_sizes(data.eval.examples, left_out),
        )

    @property
    def deciding(self) -> int:
        """Number of rows of eval that decide."""
        return self.eval - self.left_out - self.unscored

    def by_split(self) -> dict[str, int]:
        """Return the rows of each split that there is."""
        return {"train": self.train, "eval": self.eval} | ({"valid": self.valid} if self.valid else {})


@dataclass(frozen=True)
class SequenceCounts:
    """Training sequences per epoch.

    Attributes:
        sequences: Their number.
        tokens: Their tokens, without padding.
        batches: Micro-batches per epoch if ``speed.batch_tokens`` makes them; else rows / ``train.batch_size``.
        padding: See :class:`Plan`.
    """

    sequences: int
    tokens: int
    batches: int | None = None
    padding: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSize:
    """Size of a model.

    Attributes:
        parameters: Number of its parameters.
        is_encoder_decoder: True for a model with two stacks.
    """

    parameters: int
    is_encoder_decoder: bool = False


def build_plan(
    config: Config,
    counts: RowCounts,
    epoch: SequenceCounts,
    model: ModelSize,
    *,
    machine_memory: int | None,
    baselines: Sequence[str] = ("zero_shot", "few_shot"),
    metric: Metric | None = None,
    chosen: Sequence[str] = (),
    more_advice: Sequence[str] = (),
) -> Plan:
    """Return a plan from counts.

    Args:
        config: The config.
        counts: Rows of the splits.
        epoch: Training sequences per epoch.
        model: Size of the model.
        machine_memory: Bytes that this process may use; None if unknown.
        baselines: Systems that are scored without training.
        metric: The deciding metric, if it is known.
        chosen: Sentences for options that were chosen because the config leaves them out.
        more_advice: Advice of the task.

    Raises:
        ConfigError: The job cannot work; all problems at once.
    """
    rows = counts.by_split()
    sequences, batches, parameters = epoch.sequences, epoch.batches, model.parameters
    memory = parameters * (BYTES_PER_PARAMETER + 4 * extra_copies(config.regularize))
    problems = _problems(config.baselines, rows, sequences, memory, machine_memory)
    if problems:
        raise ConfigError(problems)
    total = total_steps(config.train, sequences, batches)
    return Plan(
        task=config.task,
        method=config.method,
        model=config.model,
        rows=rows,
        sequences=sequences,
        tokens=epoch.tokens,
        steps_per_epoch=steps_per_epoch(config.train, sequences, batches),
        total_steps=total,
        warmup_steps=warmup_steps(config.train, total),
        effective_batch=_effective_batch(config.train, sequences, batches),
        padding=dict(epoch.padding),
        parameters=parameters,
        memory_bytes=memory,
        machine_bytes=machine_memory,
        baselines=tuple(baselines),
        evaluations=evaluation_steps(total, config.train.evaluations),
        trainings=config.data.folds + 1 if config.data.is_crossed and config.data.folds else config.train.seeds,
        folds=config.data.folds if config.data.is_crossed else None,
        chosen=tuple(chosen),
        detectable=_detectable(config.evaluation, metric, counts.deciding, counts.groups),
        advice=(
            *advice(config, total, parameters, is_encoder_decoder=model.is_encoder_decoder),
            *_fit(config, rows, sequences, memory, machine_memory, counts.unscored),
            *advice_on_regularizers(config, parameters),
            *more_advice,
        ),
    )


def _group_sizes(examples: Sequence[Example], left_out: Container[str] = ()) -> tuple[int, ...]:
    """Return the numbers of rows of all groups, without rows that do not decide; empty if no row has a group."""
    counts = Counter(example.group or f"row {example.id}" for example in examples if example.id not in left_out)
    return tuple(counts.values()) if any(example.group for example in examples) else ()


def _detectable(
    settings: EvaluationConfig, metric: Metric | None, rows: int, groups: Sequence[int]
) -> Detectable | None:
    """Return what rows will be able to decide, if :data:`CHANGED` of them become right or wrong."""
    if metric is None:
        return None
    is_exact = metric.name in _EXACT
    spread = math.sqrt(CHANGED) if is_exact else 1.0
    value = expected_detectable(rows, settings.confidence, spread, groups)
    if not math.isfinite(value):
        return None
    return Detectable(
        rows=rows,
        metric=metric.name,
        value=value,
        unit="fraction" if is_exact else "standard deviations",
        changed=CHANGED if is_exact else None,
        groups=len(groups),
        ungrouped=expected_detectable(rows, settings.confidence, spread) if groups else None,
    )


def _effective_batch(settings: TrainConfig, sequences: int, batches: int | None) -> int:
    size = settings.batch_size if batches is None else sequences / max(1, batches)
    return round(size * settings.accumulation)


def _problems(
    settings: BaselineConfig, rows: dict[str, int], sequences: int, memory: int, machine: int | None
) -> list[Problem]:
    problems = []
    for split in ("train", "eval"):
        if rows[split] == 0:
            problems.append(Problem("no rows", "at least 1", "check the file and data.limit", field=f"data.{split}"))
    if rows["train"] and sequences == 0:
        problems.append(
            Problem(
                "no training sequence can be made of any row",
                "at least 1 sequence",
                "raise data.max_length",
                field="data",
            )
        )
    shots = settings.few_shot
    if 0 < rows["train"] < shots != BaselineConfig().few_shot:
        fix = f"set baselines.few_shot to {rows['train']} or less, or bring more rows"
        problems.append(
            Problem(
                f"{shots} examples asked for",
                f"at most {rows['train']} (rows of train)",
                fix,
                field="baselines.few_shot",
            )
        )
    if machine is not None and memory > machine:
        found = f"training in FP32 with AdamW needs at least {gib(memory)}"
        problems.append(
            Problem(found, f"at most {gib(machine)}", "choose a smaller model, or more memory", field="model")
        )
    return problems


def _fit(
    config: Config, rows: dict[str, int], sequences: int, memory: int, machine: int | None, unscored: int
) -> tuple[str, ...]:
    """Return advice on the amount of data and on the memory of the machine."""
    lines = []
    batch = config.train.batch_size * config.train.accumulation
    if sequences < batch:
        lines.append(f"All {sequences} sequences fit in one batch of {batch}: an epoch is a single step.")
    if "valid" not in rows or not config.train.evaluations:
        lines += advice_on_choice(config)
    if rows["train"] < config.baselines.few_shot:
        shown = f"{rows['train']} example{'s' * (rows['train'] != 1)}"
        lines.append(f"Few-shot prompts have {shown}: train has no more rows.")
    scored = rows["eval"] - unscored
    if unscored:
        lines.append(f"{unscored:,} of the {rows['eval']:,} evaluation rows cannot be scored: the audit says why.")
    if scored < 100:
        deciding = "1 row decides" if scored == 1 else f"{scored} rows decide"
        lines.append(f"Only {deciding}: intervals will be wide.")
    if machine is not None and memory > 0.7 * machine:
        lines.append(
            f"{gib(memory)} of {gib(machine)} are taken before activations: "
            "lower train.batch_size, or set train.gradient_checkpointing."
        )
    return tuple(lines)


def gib(count: float) -> str:
    """Format bytes for people, e.g. ``1.9 GiB``."""
    return f"{count / 2**30:.1f} GiB"
