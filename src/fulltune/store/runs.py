"""Run folders: made once, held by one process, written atomically, found again by name.

    with RunFolder.create("runs", new_run_id("classification", "bert-base-uncased")) as folder:
        folder.write_json("plan.json", plan)

Leaving the block writes how the run ended to ``status.json``. A process that was killed cannot do that; its folder
still says ``running`` but nobody holds its lock any more, and :func:`status` then says ``killed``.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from fulltune.errors import FulltuneError, StoreError, TrainingStopped, did_you_mean
from fulltune.records.run import Model
from fulltune.runtime import distributed, paths
from fulltune.runtime.files import append_lines, atomic_text, remove_all_unfinished, storing, to_json
from fulltune.runtime.validation import unread

State = Literal["running", "finished", "refused", "failed", "stopped", "killed"]

_STATUS = "status.json"
_LOCK = ".lock"

#: Seconds to wait for a lock: who lists runs takes it for a moment, who works on one keeps it.
_PATIENCE = 0.5


class Status(Model):
    """How a run is doing. ``killed`` is never written: it is what a reader concludes."""

    state: State
    pid: int
    started: str
    ended: str = ""
    message: str = ""


@dataclass(frozen=True)
class RunInfo:
    """One line of a listing."""

    run_id: str
    path: Path
    status: Status


def new_run_id(task: str, model: str) -> str:
    """A name that sorts by time, e.g. ``20260131-235959-causal-lm-gpt2-1f0a`` (UTC, task, model, random hex)."""
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{slug(task)}-{slug(model.rstrip('/').rpartition('/')[2])}-{secrets.token_hex(2)}"


class RunFolder:
    """One run's folder, held by this process from :meth:`create` until :meth:`close`, or the end of a ``with`` block.

    Of several processes of one run the first one holds it; what the others write goes nowhere.

    Attributes:
        path: The folder.
        run_id: Its name.
    """

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self.path, self.run_id, self._lock = path, path.name, lock
        self._started = _now()

    @classmethod
    def create(cls, out: str | Path, run_id: str) -> RunFolder:
        """Make ``out/run_id`` and hold it.

        Raises:
            StoreError: It exists already, or nothing can be written there.
        """
        path = Path(out) / run_id
        if not distributed.is_main():
            return cls(path, None)
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                raise StoreError("the run folder exists already", where=str(path), fix="start the run anew") from None
            lock = _acquire(path)
        folder = cls(path, lock)
        folder.set_status("running")
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Hold the folder of a run that has not ended, to go on with it.

        Raises:
            StoreError: It has ended, another process holds it, or this is no run.
        """
        known = distributed.on_main(lambda: status(path))
        if known.state == "finished":
            raise StoreError("this run has ended", where=str(path), fix="start a new one")
        if not distributed.is_main():
            return cls(path, None)
        with storing(path):
            folder = cls(path, _acquire(path))
            remove_all_unfinished(path)
        folder._started = known.started
        folder.set_status("running")
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_state_after(error), str(error) if error else "")

    def close(self, state: State = "finished", message: str = "") -> None:
        """Write how the run ended and let go of the folder."""
        try:
            self.set_status(state, message)
        finally:
            if self._lock is not None:
                self._lock.release()

    def set_status(self, state: State, message: str = "") -> None:
        ended = "" if state == "running" else _now()
        status = Status(state=state, pid=os.getpid(), started=self._started, ended=ended, message=message)
        self.write_json(_STATUS, status)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file whole or not at all.

        Raises:
            StoreError: The disk is full or read-only; a file of that name is as it was before.
        """
        place = self.path / name
        return place if self._lock is None else atomic_text(place, text)

    def write_json(self, name: str, value: Any) -> Path:
        """Like :meth:`write_text`, for a record or anything made of dicts, lists, numbers and text; NaN is kept."""
        return self.write_text(name, to_json(value, indent=2) + "\n")

    @contextmanager
    def append(self, name: str) -> Iterator[Callable[[Any], None]]:
        """A function that adds a value as one line of JSON; no line waits in a buffer of this process."""
        if self._lock is None:
            yield lambda value: None
            return
        with append_lines(self.path / name) as write:
            yield write


def status(path: Path) -> Status:
    """How the run in this folder is doing.

    Raises:
        StoreError: The folder has no readable status.
    """
    file = path / _STATUS
    try:
        status = Status.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError("this is no run folder", expected=_STATUS, where=str(path), fix="name a run") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise StoreError(
            f"the status cannot be read ({unread(error)})", where=str(file), fix="delete the run"
        ) from error
    if status.state == "running" and not _held(path):
        return status.model_copy(update={"state": "killed", "message": f"process {status.pid} is gone"})
    return status


def list_runs(out: str | Path) -> list[RunInfo]:
    """All runs under ``out``, the oldest first; other folders and unreadable ones are left out."""
    runs = []
    for path in _folders(Path(out)):
        try:
            runs.append(RunInfo(path.name, path, status(path)))
        except StoreError:
            continue
    return runs


def resolve(name: str, out: str | Path = "runs") -> Path:
    """The folder of a run named by its id, the beginning of it, a path, or ``latest`` (the newest with a record).

    Raises:
        StoreError: No run fits, or several do.
    """
    folders = {path.name: path for path in _folders(Path(out))}
    if name == "latest":
        return _latest(list(folders.values()), Path(out))
    if name in folders:
        return folders[name]
    if paths.exists(Path(name) / _STATUS):
        return Path(name)
    fits = [run for run in folders if name and run.startswith(name)]
    if len(fits) == 1:
        return folders[fits[0]]
    if fits:
        raise StoreError(f"{name!r} fits {len(fits)} runs: {', '.join(fits)}", fix="write more of the id")
    raise _unknown(name, list(folders), Path(out))


def _unknown(name: str, known: list[str], out: Path) -> StoreError:
    if not known:
        return StoreError(f"there is no run {name!r}", where=str(out), fix="`fulltune run` makes one; --out says where")
    newest = "one of " + ", ".join(known[-5:]) + (" (the newest five)" if len(known) > 5 else "")
    fix = did_you_mean(name, known) or "name a run by its id or the beginning of it; --out says where runs are"
    return StoreError(f"there is no run {name!r}", expected=newest, where=str(out), fix=fix)


def _latest(folders: list[Path], out: Path) -> Path:
    finished = [path for path in folders if (path / "record.json").exists()]
    if not finished:
        raise StoreError("there is no run with a record", where=str(out), fix="`fulltune run` makes one")
    # Names tell the second; of two runs in one second the one that ended later is the newer.
    second = len("20260131-235959")
    return max(finished, key=lambda path: (path.name[:second], (path / "record.json").stat().st_mtime_ns))


def _folders(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob(f"*/{_STATUS}"))


def _acquire(path: Path) -> FileLock:
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise StoreError("another process holds this run", where=str(path), fix="wait until it ends") from None
    return lock


def _held(path: Path) -> bool:
    """Whether a living process holds the folder; the system lets go of a lock when its process dies."""
    if not (path / _LOCK).exists():
        return False
    try:
        with FileLock(path / _LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        # A folder that we may only read: its lock cannot be tried, so its own word stands.
        return True


def _state_after(error: BaseException | None) -> State:
    if error is None:
        return "finished"
    if isinstance(error, (TrainingStopped, KeyboardInterrupt)):
        return "stopped"
    return "refused" if isinstance(error, FulltuneError) else "failed"


def slug(text: str) -> str:
    """The text as a part of a file name: small letters, digits, dots and hyphens, at most 32 of them."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:32].rstrip("-.") or "x"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
