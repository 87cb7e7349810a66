from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fulltune.errors import StoreError
from fulltune.runtime import distributed
from fulltune.store.manifest import write_folder
from fulltune.training.checkpoints import sharded
from fulltune.training.checkpoints.state_files import encode


def _checkpoint(folder: Path, randoms: int, **properties: Any) -> Path:
    path = folder / "checkpoint-2"

    def fill(inner: Path) -> None:
        encode([{"now": 1, "epoch": 1}] * randoms).write(inner, "random")

    write_folder(path, fill, properties={"step": 2, "sequence": 1} | properties)
    return path


@pytest.mark.parametrize(
    ("entries", "engine", "processes", "message"),
    [
        ({"engine": "zero2", "processes": 2}, "zero2", 2, ""),
        ({"engine": "zero2", "processes": 2}, "zero2", 4, "one of zero2 on 2 processes; expected one of zero2 on 4"),
        ({"engine": "zero2", "processes": 2}, "zero3", 2, "one of zero2 on 2 processes; expected one of zero3 on 2"),
        (
            {"engine": "fsdp2", "processes": 2},
            "",
            1,
            "one of fsdp2 on 2 processes; expected one of an unsharded model",
        ),
        ({}, "ddp", 2, ""),
        ({}, "", 1, ""),
        ({}, "ddp", 4, "one of an unsharded model on 2 processes; expected one of an unsharded model on 4"),
        ({}, "fsdp2", 2, "one of an unsharded model on 2 processes; expected one of fsdp2 on 2"),
    ],
)
def test_the_engine_and_world_size_must_match_to_resume(
    entries: dict[str, Any],
    engine: str,
    processes: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "engine", lambda: engine)
    path = _checkpoint(tmp_path, 2, **entries)
    if not message:
        sharded.check(path, processes)
        return
    with pytest.raises(StoreError, match=f"the checkpoint is {message}"):
        sharded.check(path, processes)
