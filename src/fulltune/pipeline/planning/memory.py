"""Memory of a job by part, from a few measured steps; and proposals if it does not fit.

Weights, gradients and AdamW's moments are 4 + 4 + 8 bytes per parameter in FP32 (Kingma & Ba 2015, Algorithm 1;
Rajbhandari et al. 2020, "ZeRO", section 3.1); here they are counted on the tensors. Activations are measured: see
:mod:`fulltune.pipeline.planning.footprint`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fulltune.config import Config
from fulltune.errors import ConfigError
from fulltune.pipeline.planning.footprint import Footprint
from fulltune.pipeline.planning.plan import gib
from fulltune.training.checkpoints.format import spacing
from fulltune.training.regularization.costs import extra_copies

#: Overhead of the allocator as a fraction of the memory of training: holes between tensors of different sizes,
#: measured by ``benchmarks/plan_error.py``.
SLACK = 0.05

#: A copy of the state that is written in the background; without memory for it, training waits instead.
COPY = "checkpoint being written"

#: Bytes per parameter of 8-bit AdamW: two moments of a byte, and a float32 scale for each of their blocks of 256
#: (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2).
_BYTES_OF_8BIT = 2 + 2 * 4 / 256

#: Below this fraction of the machine's memory a rough upper bound is enough, and nothing is measured.
SMALL = 0.5


@dataclass(frozen=True)
class Proposal:
    """A change that saves memory, and the memory that the job then takes.

    Attributes:
        change: The setting to change.
        bytes: The peak.
    """

    change: str
    bytes: int


def parts(config: Config, footprint: Footprint, *, program: int, base: int, steps: int) -> dict[str, int]:
    """Return bytes at the peak of training, by part; parts of 0 bytes are left out.

    Args:
        config: The config.
        footprint: Memory of one step.
        program: Bytes of the process before any model: the interpreter, libraries, rows.
        base: Bytes of the base if it is kept alongside the trained model.
        steps: Optimizer steps of the training; one that ends before its first checkpoint writes none.
    """
    writes = config.checkpoints is not None and spacing(steps, config.checkpoints.every) < steps
    step = footprint.step_bytes(accumulated=config.train.accumulation > 1)
    training = {
        "weights": footprint.weights,
        "gradients": footprint.gradients,
        "optimizer state": footprint.optimizer,
        "activations": max(0, step - footprint.gradients),
        "copies for regularizers": footprint.weights * extra_copies(config.regularize),
        COPY: (footprint.gradients + footprint.optimizer) if writes else 0,
    }
    slack = round(SLACK * sum(training.values()))
    whole = {"program and data": program, "base model": base, **training, "allocator": slack}
    return {name: size for name, size in whole.items() if size}


def essential(taken: Mapping[str, int]) -> int:
    """Return the bytes that training cannot do without."""
    return sum(size for name, size in taken.items() if name != COPY)


def proposals(
    config: Config, footprint: Footprint, recomputing: Footprint | None, limit: int, **fixed: int
) -> Iterator[Proposal]:
    """Yield changes that save memory, the least costly first.

    Args:
        config: The config.
        footprint: Memory of one step.
        recomputing: The same with gradient checkpointing; None if the model does not support it or already uses it.
        limit: Memory of the machine in bytes.
        fixed: As in :func:`parts`.
    """
    smaller = _smaller(config, footprint, limit, fixed)
    if smaller is not None:
        yield Proposal(_change(config, footprint, smaller), _total(_accumulating(config), smaller, fixed))
    if recomputing is not None:
        yield Proposal("train.gradient_checkpointing: true", _total(config, recomputing, fixed))
    small = (footprint.gradients - footprint.embeddings) / 4 * _BYTES_OF_8BIT
    light = replace(footprint, optimizer=round(small) + 2 * footprint.embeddings)  # embeddings keep float32 moments
    if light.optimizer < footprint.optimizer:
        yield Proposal("train.optimizer: adamw-8bit", _total(config, light, fixed))
        best = replace(recomputing or footprint, rows=(smaller or footprint).rows, optimizer=light.optimizer)
        yield Proposal("all of these together", _total(_accumulating(config), best, fixed))
    yield Proposal("sharding over 2 processes (fulltune launch)", _sharded(config, footprint, 2, fixed))


def refusal(taken: Mapping[str, int], limit: int, ways: Sequence[Proposal]) -> ConfigError:
    """Return the error for a job that does not fit: memory by part, and each proposal with its own figure."""
    total = essential(taken)
    largest = sorted(taken.items(), key=lambda item: -item[1])[:3]
    largest_parts = ", ".join(f"{name} {gib(size)}" for name, size in largest)
    fits = [f"{way.change} ({gib(way.bytes)})" for way in ways if way.bytes <= limit]
    short = [f"{way.change} ({gib(way.bytes)})" for way in ways if way.bytes > limit]
    fix = f"any of these makes it fit: {'; '.join(fits)}" if fits else "choose a smaller model, or more memory"
    if short:
        fix += f". Not enough alone: {'; '.join(short)}"
    return ConfigError(
        f"training needs {gib(total)} ({largest_parts})",
        expected=f"at most {gib(limit)}, which this machine has",
        fix=fix,
        field="train.batch_size",
    )


def rough_step_bytes(model: Any, rows: int, width: int) -> int | None:
    """Return an upper bound on activations and logits of a step; None if the config lacks the sizes.

    ``s·b·h·(34 + 5·a·s/h)`` bytes per layer in 16 bits (Korthikanti et al. 2022, "Reducing Activation Recomputation in
    Large Transformer Models", equation 2), twice that in 32, and twice again for functions that are not fused; four
    times the logits.
    """
    layers, hidden, heads = (_size(model, name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if not (layers and hidden and heads):
        return None
    stacks = 2 if getattr(model, "is_encoder_decoder", False) else 1
    layer = 4 * rows * width * hidden * (34 + 5 * heads * width / hidden)
    logits = 4 * 4 * rows * width * int(getattr(model, "vocab_size", 0) or 0)
    return int(stacks * layers * layer + logits)


def _size(model: Any, name: str) -> int | None:
    """Return a size from a model's config; None where it is not one number for all layers."""
    try:
        return getattr(model, name, None)
    except RuntimeError:  # of transformers, where the layers differ
        return None


def _total(config: Config, footprint: Footprint, fixed: Mapping[str, int]) -> int:
    return essential(parts(config, footprint, **fixed))


def _sharded(config: Config, footprint: Footprint, processes: int, fixed: Mapping[str, int]) -> int:
    """Return the part of one process if weights, gradients and state are sharded (ZeRO-3, FSDP)."""
    part = replace(footprint, rows=max(1, footprint.rows // processes))
    taken = parts(config, part, **fixed)
    shared = ("weights", "gradients", "optimizer state", COPY)
    return essential({name: size // processes if name in shared else size for name, size in taken.items()})


def _smaller(config: Config, footprint: Footprint, limit: int, fixed: Mapping[str, int]) -> Footprint | None:
    """Return a config whose micro-batches are halved until they fit; None if they already have one row."""
    smaller, accumulating = footprint, _accumulating(config)
    while smaller.rows > 1:
        smaller = replace(smaller, rows=-(-smaller.rows // 2))
        if _total(accumulating, smaller, fixed) <= limit:
            break
    return None if smaller is footprint else smaller


def _change(config: Config, footprint: Footprint, smaller: Footprint) -> str:
    accumulation = config.train.accumulation * -(-footprint.rows // smaller.rows)
    # The footprint has fewer rows than the batch if batches are computed in parts.
    key, size = "train.batch_size", max(1, config.train.batch_size * smaller.rows // footprint.rows)
    if config.speed.batch_tokens is not None:
        key, size = "speed.batch_tokens", config.speed.batch_tokens * smaller.rows // footprint.rows
    return f"{key}: {size} with train.accumulation: {accumulation}"


def _accumulating(config: Config) -> Config:
    train = config.train.model_copy(update={"accumulation": max(2, config.train.accumulation)})
    return config.model_copy(update={"train": train})
