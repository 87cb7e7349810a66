"""Run folders: created once, locked by one process, written atomically, resolved by name.

    with RunFolder.create("runs", new_run_id("classification", "bert-base-uncased")) as folder:
        folder.write_json("plan.json", plan)

Leaving the block writes the final state to ``status.json``. A killed process cannot do that: its status remains
``running``, but its lock is released, and :func:`status` then returns ``killed``.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from fulltune.errors import FulltuneError, StoreError, TrainingStopped, did_you_mean
from fulltune.records.run import Model, Record
from fulltune.runtime import distributed, paths
from fulltune.runtime.clock import now
from fulltune.runtime.files import append_lines, atomic_text, remove_all_unfinished, store_errors, to_json
from fulltune.runtime.validation import read_failure

State = Literal["running", "finished", "refused", "failed", "stopped", "killed"]

_STATUS = "status.json"
_LOCK = ".lock"

#: File that marks a run as part of a larger experiment, with the name of its folder.
_PART_OF = "part_of.txt"

#: The experiment that new runs are part of; empty for none.
_experiment: ContextVar[str] = ContextVar("experiment", default="")

#: Seconds to wait for a lock: listing runs takes it for a moment, a running process keeps it.
_PATIENCE = 0.5


class Status(Model):
    """State of a run. ``killed`` is never written: readers infer it."""

    state: State
    pid: int
    started: str
    ended: str = ""
    message: str = ""


@dataclass(frozen=True)
class RunInfo:
    """One entry of a list of runs."""

    run_id: str
    path: Path
    status: Status


def new_run_id(task: str, model: str) -> str:
    """Return a name that sorts by time, e.g. ``20260131-235959-causal-lm-gpt2-1f0a`` (UTC, task, model, random hex)."""
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{slug(task)}-{slug(model.rstrip('/').rpartition('/')[2])}-{secrets.token_hex(2)}"


@contextmanager
def part_of(experiment: str) -> Iterator[None]:
    """Mark runs that are created within the block as part of an experiment: ``latest`` never means them."""
    token = _experiment.set(experiment)
    try:
        yield
    finally:
        _experiment.reset(token)


def is_part(folder: Path) -> bool:
    """Return True if a run was made by an experiment that compares several, such as ``fulltune methods``."""
    return (folder / _PART_OF).exists()


class RunFolder:
    """Folder of one run, locked by this process from :meth:`create` until :meth:`close` or the end of the block.

    Of several processes of one run, only the main process locks the folder; writes of the others are discarded.

    Attributes:
        path: The folder.
        run_id: Its name.
    """

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self.path, self.run_id, self._lock = path, path.name, lock
        self._started = now()

    @classmethod
    def create(cls, out: str | Path, run_id: str) -> RunFolder:
        """Create and lock ``out/run_id``.

        Raises:
            StoreError: The folder exists already, or cannot be written.
        """
        path = Path(out) / run_id
        if not distributed.is_main():
            return cls(path, None)
        with store_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                raise StoreError("the run folder exists already", where=str(path), fix="start the run again") from None
            lock = _acquire(path)
        folder = cls(path, lock)
        if _experiment.get():
            folder.write_text(_PART_OF, f"{_experiment.get()}\n")
        folder.set_status("running")
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Lock the folder of a run that has not ended, to resume it.

        Raises:
            StoreError: The run has ended, another process has locked it, or this is not a run folder.
        """
        known = distributed.on_main(lambda: status(path))
        if known.state == "finished":
            raise StoreError("this run has ended", where=str(path), fix="start a new one")
        if not distributed.is_main():
            return cls(path, None)
        with store_errors(path):
            folder = cls(path, _acquire(path))
            remove_all_unfinished(path)
        folder._started = known.started
        folder.set_status("running")
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_state_after(error), str(error) if error else "")

    def close(self, state: State = "finished", message: str = "") -> None:
        """Write the final state of the run and release the lock."""
        try:
            self.set_status(state, message)
        finally:
            if self._lock is not None:
                self._lock.release()

    def set_status(self, state: State, message: str = "") -> None:
        ended = "" if state == "running" else now()
        status = Status(state=state, pid=os.getpid(), started=self._started, ended=ended, message=message)
        self.write_json(_STATUS, status)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file atomically.

        Raises:
            StoreError: The disk is full or read-only; an existing file of that name is unchanged.
        """
        place = self.path / name
        return place if self._lock is None else atomic_text(place, text)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a record or a plain value as JSON, like :meth:`write_text`; NaN is kept."""
        return self.write_text(name, to_json(value, indent=2) + "\n")

    @contextmanager
    def append(self, name: str) -> Iterator[Callable[[Any], None]]:
        """Return a function that appends a value as one line of JSON, without buffering in this process."""
        if self._lock is None:
            yield lambda value: None
            return
        with append_lines(self.path / name) as write:
            yield write


def status(path: Path) -> Status:
    """Return the state of the run in this folder.

    Raises:
        StoreError: The folder has no readable status.
    """
    file = path / _STATUS
    try:
        status = Status.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError("this is not a run folder", expected=_STATUS, where=str(path), fix="name a run") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise StoreError(
            f"the status cannot be read ({read_failure(error)})", where=str(file), fix="delete the run"
        ) from error
    if status.state == "running" and not _is_locked(path):
        return status.model_copy(update={"state": "killed", "message": f"process {status.pid} is gone"})
    return status


def list_runs(out: str | Path) -> list[RunInfo]:
    """Return all runs under ``out``, oldest first, without other folders and unreadable runs."""
    runs = []
    for path in _folders(Path(out)):
        try:
            runs.append(RunInfo(path.name, path, status(path)))
        except StoreError:
            continue
    return runs


def name_and_folder(run: str | Path | Record, out: str | Path = "runs") -> tuple[str, Path]:
    """Return the name of a run, a version or a model, and the runs folder to look it up in.

    A record and the path of a run folder name both; for any other name the folder is ``out``.
    """
    if isinstance(run, Record):
        return run.folder.name, run.folder.parent
    is_id = paths.exists(Path(out) / str(run) / _STATUS)
    if not is_id and paths.exists(Path(run) / _STATUS):
        folder = Path(run).resolve()
        return folder.name, folder.parent
    return str(run), Path(out)


def resolve(name: str, out: str | Path = "runs") -> Path:
    """Return the folder of a run: by id, prefix of the id, path, or ``latest`` (the newest run with a record).

    Runs of an experiment (:func:`part_of`) are found by name alone.

    Raises:
        StoreError: No run matches, or several do.
    """
    folders = {path.name: path for path in _folders(Path(out))}
    if name == "latest":
        return _latest(list(folders.values()), Path(out))
    if name in folders:
        return folders[name]
    if paths.exists(Path(name) / _STATUS):
        return Path(name)
    matches = [run for run in folders if name and run.startswith(name)]
    if len(matches) == 1:
        return folders[matches[0]]
    if matches:
        raise StoreError(f"{name!r} matches {len(matches)} runs: {', '.join(matches)}", fix="write more of the id")
    raise _unknown(name, list(folders), Path(out))


def _unknown(name: str, known: list[str], out: Path) -> StoreError:
    if not known:
        return StoreError(
            f"there is no run {name!r}", where=str(out), fix="start one with `fulltune run`; --out sets the folder"
        )
    newest = "one of " + ", ".join(known[-5:]) + (" (the newest five)" if len(known) > 5 else "")
    fix = (
        did_you_mean(name, [*known, "latest"])
        or "name a run by its id or a prefix of it; --out sets the folder of the runs"
    )
    return StoreError(f"there is no run {name!r}", expected=newest, where=str(out), fix=fix)


def _latest(folders: list[Path], out: Path) -> Path:
    finished = [path for path in folders if (path / "record.json").exists() and not is_part(path)]
    if not finished:
        raise StoreError("there is no run with a record", where=str(out), fix="start one with `fulltune run`")
    # Names have a resolution of one second; within it, the run that ended later is the newer one.
    second = len("20260131-235959")
    return max(finished, key=lambda path: (path.name[:second], (path / "record.json").stat().st_mtime_ns))


def _folders(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob(f"*/{_STATUS}"))


def _acquire(path: Path) -> FileLock:
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise StoreError("another process has locked this run", where=str(path), fix="wait until it ends") from None
    return lock


def _is_locked(path: Path) -> bool:
    """Return True if a living process has locked the folder; the system releases the lock of a dead process."""
    if not (path / _LOCK).exists():
        return False
    try:
        with FileLock(path / _LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        # The folder is read-only for this user: the lock cannot be tested, so trust the written status.
        return True


def _state_after(error: BaseException | None) -> State:
    if error is None:
        return "finished"
    if isinstance(error, (TrainingStopped, KeyboardInterrupt)):
        return "stopped"
    return "refused" if isinstance(error, FulltuneError) else "failed"


def slug(text: str) -> str:
    """Return the text as part of a file name: at most 32 lowercase letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:32].rstrip("-.") or "x"
