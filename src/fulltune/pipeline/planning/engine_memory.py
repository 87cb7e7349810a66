"""Memory per device for training a model in FP32 with AdamW, by engine and number of devices.

Pure arithmetic on counts; ``docs/distributed.md`` has the sources of the numbers. With P parameters and N devices, in
bytes per device:

    one       16 P                    weights, gradients and two moments, 4 bytes each
    ddp       20 P                    and a copy of the gradients in the buckets that are averaged
    zero1      8 P + 16 P/N + bucket  moments sharded, with a copy of the shard's weights and gradients
    zero2      4 P + 20 P/N + bucket  gradients sharded too, and once more while they are applied
    zero3     20 P/N + live + bucket  weights sharded too; `live` is gathered or scattered at one time
    fsdp2     16 P/N + live

Activations come on top (:func:`activation_bytes`). Shards: Rajbhandari et al. 2020, "ZeRO", section 5, with FP32 in
place of FP16 and its FP32 copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fulltune.records.run import Model

Engine = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]

ENGINES: tuple[Engine, ...] = ("ddp", "zero1", "zero2", "zero3", "fsdp2")

#: Numbers that DeepSpeed reduces at once (``reduce_bucket_size``); it allocates that many for any model.
BUCKET = 500_000_000

#: Largest number of parameters that ZeRO-3 keeps gathered (``stage3_max_live_parameters``).
LIVE = 1_000_000_000

#: Memory that is left free on a device: the context of CUDA, its libraries, and fragmentation.
RESERVED = 1.5 * 2**30

_FLOAT = 4


@dataclass(frozen=True)
class Shape:
    """The size of a model in numbers.

    Attributes:
        name: Name for people.
        parameters: All parameters, tied ones counted once.
        block: Parameters of the largest block (a block is what engines gather at one time).
        embeddings: Parameters of the input embeddings.
        hidden: Width of the residual stream.
        layers: Number of blocks, in both stacks if there are two.
        feed_forward: Width of the feed-forward layer.
        vocabulary: Columns of the logits.
    """

    name: str
    parameters: int
    block: int
    embeddings: int
    hidden: int
    layers: int
    feed_forward: int
    vocabulary: int


@dataclass(frozen=True)
class Need:
    """Bytes that one process needs: on its device, and in host memory for what is offloaded."""

    device: float
    host: float = 0.0


class Fit(Model):
    """One line of the table: the smallest number of devices on which a model fits, by engine.

    Attributes:
        model: Name of the model.
        parameters: Number of parameters.
        device_bytes: Memory of one device.
        fits: By engine, the smallest number of devices on which the model fits; None if none of those tried is enough.
    """

    model: str
    parameters: int
    device_bytes: int
    fits: dict[str, int | None]


class Table(Model):
    """The devices that models need: rows by model and device size, with or without the presets' ``--offload``."""

    offload: bool
    rows: tuple[Fit, ...]


def need(shape: Shape, engine: Engine, devices: int, *, tokens: int = 1024, offload: bool = False) -> Need:
    """Return the bytes that one process needs to train.

    Args:
        shape: The model.
        engine: The engine that shards the model; with one device all engines but ``ddp`` still work as usual.
        devices: Number of devices.
        tokens: Tokens of a micro-batch on one device; activations are recomputed (gradient checkpointing).
        offload: Use the preset's ``--offload``.

    Raises:
        ValueError: Fewer than one device.
    """
    if devices < 1:
        raise ValueError(f"{devices} devices")
    whole, shard = _FLOAT * shape.parameters, _FLOAT * shape.parameters / devices
    working = activation_bytes(shape, tokens)
    if engine == "ddp":
        return Need((4 if devices == 1 else 5) * whole + working)
    bucket = _FLOAT * BUCKET
    if engine == "fsdp2":
        kept, shards = gathered(shape, units=3), 4 * shard
    elif engine == "zero3":
        # A bucket of gradients is copied into the order of the shards before it is scattered.
        live = _FLOAT * (min(LIVE, shape.parameters) + min(BUCKET, shape.parameters)) + gathered(shape, units=1)
        kept, shards = live + bucket, 5 * shard
    elif engine == "zero2":
        kept, shards = whole + bucket, 5 * shard
    else:
        kept, shards = 2 * whole + bucket, 4 * shard
    return Need(kept + working, shards) if offload else Need(kept + shards + working)


def gathered(shape: Shape, units: int) -> float:
    """Return the bytes of the embeddings and of ``units`` blocks that are complete on a device at one time."""
    return _FLOAT * (shape.embeddings + units * shape.block)


def activation_bytes(shape: Shape, tokens: int) -> float:
    """Return the bytes of activations with every block recomputed: block inputs, one active block, and three logits.

    The active block is that of :func:`block_numbers`.
    """
    block = block_numbers(shape.hidden, shape.feed_forward)
    return float(_FLOAT * tokens * (shape.layers * shape.hidden + block + 3 * shape.vocabulary))


def block_numbers(hidden: int, feed_forward: int) -> int:
    """Return the numbers per token that a block keeps for its backward pass, ``8 h + 3 f``.

    These are the linear and attention parts of Korthikanti et al. 2022, equation 1, without dropout masks and, with
    fused attention, without its scores.
    """
    return 8 * hidden + 3 * feed_forward


def what_fits(
    shapes: Sequence[Shape],
    devices: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    sizes: Sequence[int] = (24, 40, 80),
    *,
    offload: bool = False,
) -> list[Fit]:
    """Return the fewest devices on which each engine trains each model, for each device size.

    Args:
        shapes: The models.
        devices: Numbers of devices to try, ascending.
        sizes: Memory of one device, in GiB.
        offload: Use the presets' ``--offload``.
    """

    def fewest(shape: Shape, engine: Engine, size: int) -> int | None:
        room = size * 2**30 - RESERVED
        return next((n for n in devices if need(shape, engine, n, offload=offload).device <= room), None)

    return [
        Fit(
            model=shape.name,
            parameters=shape.parameters,
            device_bytes=size * 2**30,
            fits={engine: fewest(shape, engine, size) for engine in ENGINES},
        )
        for shape in shapes
        for size in sizes
    ]
