"""Check the limits of an engine before anything is loaded: what a launch of several processes supports."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fulltune.config import Config
from fulltune.errors import ConfigError, Problem
from fulltune.runtime import distributed

#: Optimizers whose state can be sharded: their update is elementwise.
SHARDED_OPTIMIZERS = ("adamw", "adamw_torch", "adamw_torch_fused")


def is_sharded_launch() -> bool:
    """Return True if weights, gradients or the state of the optimizer are sharded over processes."""
    return distributed.engine() not in ("", "ddp")


def divided_batch(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Divide the effective batch among processes.

    Micro-batches are divided first, then rows, so that no process has more rows in memory than a single one would.

    Args:
        batch_size: Rows per micro-batch of a single process.
        accumulation: Micro-batches per step of a single process.
        processes: Number of processes.

    Returns:
        Rows per micro-batch, and micro-batches per step, of each process.

    Raises:
        ConfigError: The batch is not divisible by the number of processes.
    """
    divisor = math.gcd(accumulation, processes)
    rest = processes // divisor
    if batch_size % rest:
        raise ConfigError(
            f"{batch_size * accumulation} rows per step for {processes} processes",
            expected=f"an effective batch (batch_size × accumulation) that {processes} divides",
            fix="change train.batch_size, train.accumulation, or the number of processes",
            field="train.batch_size",
        )
    return batch_size // rest, accumulation // divisor


def check(config: Config) -> None:
    """Check that the engine of this launch supports the config.

    Raises:
        ConfigError: It does not; all problems at once.
    """
    problems = list(_problems(config)) if is_sharded_launch() else []
    processes = distributed.launched()
    accumulation = config.train.accumulation
    budget = config.speed.batch_tokens
    if budget and accumulation % processes:
        problems.append(
            Problem(
                f"{accumulation} micro-batches of {budget} tokens per step for {processes} processes",
                expected="the same number for each process",
                fix=f"make train.accumulation a multiple of {processes}, or set train.batch_size instead",
                field="speed.batch_tokens",
            )
        )
    if problems:
        raise ConfigError(problems)
    divided_batch(config.train.batch_size, accumulation, processes)


def _problems(config: Config) -> Iterator[Problem]:
    """Yield the parts of a config that a sharded engine does not support."""
    name = distributed.engine()
    if config.method != "full":
        yield Problem(f"{config.method} with {name}", "full", "launch it with the preset ddp", field="method")
    if config.train.optimizer not in SHARDED_OPTIMIZERS:
        yield Problem(
            f"{config.train.optimizer} with {name}",
            expected=f"one of {', '.join(SHARDED_OPTIMIZERS)}",
            fix="launch it with the preset ddp",
            field="train.optimizer",
        )
    for penalty in ("l2_sp", "ewc", "distill"):
        if getattr(config.regularize, penalty):
            yield Problem(
                f"{penalty} with {name}, which shards gradients",
                expected="no penalty on weights",
                fix="launch it with the preset ddp, or use replay or layer_decay",
                field=f"regularize.{penalty}",
            )
