"""Checkpoints of a training whose weights and optimizer are spread over processes.

The engine writes its shards as it always does; the random numbers and the progress of every process lie beside them, as
in any other checkpoint of ours, and a manifest over all of it makes the folder whole or nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

from fulltune.errors import StoreError
from fulltune.runtime import distributed
from fulltune.store.manifest import read_manifest, seal, unfinished_folder
from fulltune.training.checkpoints.format import FORMAT
from fulltune.training.checkpoints.state_files import encode, read

if TYPE_CHECKING:
    from fulltune.training.trainer import Trainer


def save(trainer: Trainer, write: Callable[[], None], target: Path, states: dict[str, Any], **facts: Any) -> None:
    """Write this step's checkpoint, together with all other processes; what they see must be one file system.

    Args:
        trainer: Whose training it is.
        write: Writes the engine's checkpoint to ``args.output_dir``.
        target: Its place.
        states: What lies beside the shards, of all processes.
        facts: For the manifest.
    """
    unfinished = broadcast_object_list([unfinished_folder(target)])[0]
    with _written_to(trainer, unfinished):
        write()
    trainer.accelerator.wait_for_everyone()
    inner = unfinished / target.name
    if trainer.args.should_save:
        for name, state in states.items():
            encode(state).write(inner, name)
        spread = {"engine": distributed.engine(), "processes": trainer.args.world_size}
        seal(inner, target, {"format": FORMAT, "step": trainer.state.global_step, **spread, **facts})
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


@contextmanager
def _written_to(trainer: Trainer, folder: Path) -> Iterator[None]:
    """For a moment the trainer writes its checkpoints elsewhere, and rotates none."""
    args = trainer.args
    before = args.output_dir, args.save_total_limit
    args.output_dir, args.save_total_limit = str(folder), None
    try:
        yield
    finally:
        args.output_dir, args.save_total_limit = before


def check(source: Path, processes: int) -> None:
    """Whether these processes, with their engine, can go on from a checkpoint: shards need the engine and the number
    that wrote them; a model in one piece can be taken up by fewer processes, but each needs its random numbers.

    Raises:
        StoreError: They cannot.
    """
    facts, now = read_manifest(source).facts, distributed.engine()
    wrote, is_now = str(facts.get("engine", "")), "" if now == "ddp" else now
    count = int(facts.get("processes", 0)) or len(read(source, "random"))
    if wrote == is_now and (count == processes or (not wrote and count > processes)):
        return
    raise StoreError(
        f"the checkpoint is one of {wrote or 'a model in one piece'} on {count} processes",
        expected=f"one of {is_now or 'a model in one piece'} on {processes} processes",
        fix="resume with the preset and the number of processes that wrote it",
        where=str(source),
    )
