"""Write checkpoints of a training whose weights and optimizer are sharded over processes.

The engine writes its shards. The random numbers and the progress of every process are stored alongside them, as in any
other checkpoint, and a manifest covers all files, so that an incomplete folder is detected.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from fulltune.errors import StoreError
from fulltune.runtime import distributed
from fulltune.store.manifest import read_manifest, seal, unfinished_folder
from fulltune.training.checkpoints.format import FORMAT
from fulltune.training.checkpoints.state_files import encode, read
from fulltune.training.protocols import ShardedTraining


def save(
    training: ShardedTraining, write: Callable[[], None], target: Path, states: dict[str, Any], **properties: Any
) -> None:
    """Write the checkpoint of this step. All processes must call it together, on one shared file system.

    Args:
        training: The training.
        write: Writes the engine's checkpoint to ``args.output_dir``.
        target: Folder of the checkpoint.
        states: States of all processes that are stored alongside the shards.
        properties: Entries of the manifest.
    """
    unfinished = broadcast_object_list([unfinished_folder(target)])[0]
    with _written_to(training.args, unfinished):
        write()
    training.accelerator.wait_for_everyone()
    inner = unfinished / target.name
    if training.args.should_save:
        for name, state in states.items():
            encode(state).write(inner, name)
        shards = {"engine": distributed.engine(), "processes": training.args.world_size}
        seal(inner, target, {"format": FORMAT, "step": training.state.global_step, **shards, **properties})
        shutil.rmtree(unfinished, ignore_errors=True)
    training.accelerator.wait_for_everyone()


@contextmanager
def _written_to(args: TrainingArguments, folder: Path) -> Iterator[None]:
    """Let the engine write to another folder, and remove no older checkpoint."""
    output_dir = args.output_dir
    limit = args.save_total_limit
    args.output_dir = str(folder)
    args.save_total_limit = None
    try:
        yield
    finally:
        args.output_dir = output_dir
        args.save_total_limit = limit


def check(source: Path, processes: int) -> None:
    """Check that this number of processes and their engine can resume from a checkpoint.

    Shards need the engine and the number of processes that wrote them. An unsharded model can be resumed by fewer
    processes, not by more: each process needs its random numbers.

    Args:
        source: The checkpoint.
        processes: Number of processes now.

    Raises:
        StoreError: They cannot.
    """
    properties = read_manifest(source).properties
    writer = str(properties.get("engine", ""))
    engine = "" if distributed.engine() == "ddp" else distributed.engine()
    count = int(properties.get("processes", 0)) or len(read(source, "random"))
    if writer == engine and (count == processes or (not writer and count > processes)):
        return
    raise StoreError(
        f"the checkpoint is one of {writer or 'an unsharded model'} on {count} processes",
        expected=f"one of {engine or 'an unsharded model'} on {processes} processes",
        fix="resume with the preset and the number of processes that wrote it",
        where=str(source),
    )
