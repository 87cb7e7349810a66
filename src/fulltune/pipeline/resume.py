"""Resume a run that was stopped or killed: check that it is still the same run, and read back its results.

Data, audit and baselines are made again or come from the cache; training resumes from the newest intact checkpoint; a
finished model is read from its folder.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fulltune.config import Config, dump_config
from fulltune.errors import ConfigError, Problem, StoreError, TrainingStopped
from fulltune.models.tokenizing import tokenizer_sha256
from fulltune.pipeline.job import Job
from fulltune.pipeline.model_loading import load_model
from fulltune.runtime import distributed, version
from fulltune.runtime.files import to_json
from fulltune.runtime.signals import terminable
from fulltune.runtime.validation import read_object
from fulltune.store import runs
from fulltune.store.runs import RunFolder, list_runs, resolve
from fulltune.tasks import prompts

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle
    from fulltune.training.fit import TrainingResult

#: Files with what a run depends on, and with the result of its training.
_FACTS, _TRAINED = "resume.json", "training.json"

#: File with the launch of several processes that a run belongs to.
_LAUNCH = "launch.txt"

#: Packages whose major version changes results, and config sections that change nothing.
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")
_FREE = ("checkpoints",)


class Interrupted(KeyboardInterrupt):
    """A run was interrupted; the message has the command that resumes it."""


def run_to_resume(run: str | Path, out: str | Path) -> tuple[str, Path]:
    """Return the id of a run to resume and its runs folder; ``latest`` is the newest run that has not finished.

    Raises:
        StoreError: All runs have finished.
    """
    if run != "latest":
        return runs.name_and_folder(run, out)
    ended = ("finished", "running")
    open_runs = [run.run_id for run in list_runs(out) if run.status.state not in ended and not runs.is_part(run.path)]
    if not open_runs:
        raise StoreError("there is no run to resume", where=str(out), fix="start one with `fulltune run`")
    return open_runs[-1], Path(out)


def unfinished(config: Config, out: str | Path) -> str | None:
    """Return the newest run of the same config that was interrupted or killed and can be resumed."""
    text = dump_config(config)
    for run in reversed(list_runs(out)):
        kept = run.path / "config.yaml"
        is_cut = run.status.state in ("stopped", "killed") and not (run.path / "record.json").exists()
        # A run that ended before its dependencies were written cannot be resumed.
        if is_cut and (run.path / _FACTS).exists() and kept.read_text(encoding="utf-8") == text:
            return run.run_id
    return None


def config_to_resume(run: str | Path, out: str | Path) -> Path:
    """Return the path of the config of a run to resume.

    Raises:
        StoreError: There is no such run, or it stopped before it wrote its config.
    """
    path = resolve(str(run), out) / "config.yaml"
    if not path.exists():
        raise StoreError("this run has no config yet", where=str(path.parent), fix="start it again")
    return path


def restarted(out: str | Path) -> str | None:
    """Return the id of the run that these processes were running before a restart; None in the first start."""
    if not distributed.restarts():
        return None
    mine = [
        run.run_id
        for run in list_runs(out)
        if (run.path / _LAUNCH).is_file() and (run.path / _LAUNCH).read_text("utf-8") == distributed.launch_id()
    ]
    return mine[-1] if mine else None


@contextmanager
def locked(out: str | Path, resume: str | Path | None, new_id: str) -> Iterator[RunFolder]:
    """Create the folder of a new run, or open that of the run to resume, and lock it until the block ends.

    ``predictions.jsonl`` of a resumed run is deleted, because the block writes it again. Several processes write an id
    of their launch to ``launch.txt``, by which they recognize the run after a restart (:func:`restarted`).
    An interruption of the block is raised as :class:`Interrupted`, which names the command that resumes the run.

    Args:
        out: The runs folder.
        resume: The run to resume; None for a new run.
        new_id: Id of a new run.

    Raises:
        StoreError: The run is finished, or another process has locked it.
    """
    folder = RunFolder.create(out, new_id) if resume is None else RunFolder.open(resolve(str(resume), out))
    if distributed.launch_id():
        folder.write_text(_LAUNCH, distributed.launch_id())
    with terminable(), folder:
        if resume is not None and distributed.is_main():
            (folder.path / "predictions.jsonl").unlink(missing_ok=True)
        try:
            yield folder
        except KeyboardInterrupt:
            place = "" if Path(out) == Path("runs") else f" --out {out}"
            raise Interrupted(f"interrupted. To resume: fulltune run --resume {folder.run_id}{place}") from None


def check(folder: RunFolder, job: Job, allow_changed: bool) -> None:
    """Check that a resumed run is still the same; for a new run, write down what it depends on.

    Raises:
        ConfigError: It has changed; names every field with both values.
    """
    distributed.on_main(lambda: _compare(folder, _dependencies(job), allow_changed))


def _compare(folder: RunFolder, now: dict[str, Any], allow_changed: bool) -> None:
    path = folder.path / _FACTS
    if not path.exists() or allow_changed:
        folder.write_json(_FACTS, now)
        return
    before = read_object(path, "what the run depends on", fix="start a new run, or resume with --allow-changed")
    problems = [
        Problem(f"{_shown(now.get(name))} now", f"{_shown(before.get(name))}, as when the run began", field=name)
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if problems:
        last = dataclasses.replace(problems[-1], fix="change it back, start a new run, or resume with --allow-changed")
        raise ConfigError([*problems[:-1], last])


# ---- A finished training ----


def keep(trained: TrainingResult, folder: RunFolder) -> None:
    """Write the result of the training; from here on the run is not trained again."""
    plain = {item.name: getattr(trained, item.name) for item in dataclasses.fields(trained)}
    stopped = trained.stopped and [problem.to_dict() for problem in trained.stopped.problems]
    folder.write_json(_TRAINED, plain | {"stopped": stopped})


def read_back(job: Job, folder: RunFolder) -> tuple[Bundle, TrainingResult] | None:
    """Return the tuned model and the result of its training if the run had come that far; else None."""
    path = folder.path / _TRAINED
    if not path.exists():
        return None
    trained = _result(read_object(path, "the result of the training", fix="remove it: the run is then trained again"))
    tuned = job.config.model_copy(update={"model": str(folder.path / "model")})
    return load_model(tuned, job.task, job.out, head=job.task.head, labels=()), trained


def clean(folder: Path) -> None:
    """Remove the files that only a resumed run needs."""
    if not distributed.is_main():
        return
    from fulltune.training.checkpoints import format

    format.remove_all(folder)
    shutil.rmtree(folder / format.PRIVATE, ignore_errors=True)
    (folder / "best.safetensors").unlink(missing_ok=True)


def _result(raw: dict[str, Any]) -> TrainingResult:
    from fulltune.training.fit import TrainingResult

    types = typing.get_type_hints(TrainingResult)
    stopped = raw.pop("stopped")
    values = {name: TypeAdapter(types[name]).validate_python(value) for name, value in raw.items()}
    points = values["validation"].get("points", [])
    if points:
        values["validation"]["points"] = [[int(step), float(value)] for step, value in points]
    error = None if stopped is None else TrainingStopped([Problem(**problem) for problem in stopped])
    return TrainingResult(**values, stopped=error)


# ---- What a run depends on ----


def _dependencies(job: Job) -> dict[str, Any]:
    """Return everything that must be the same when the run is resumed."""
    config, data, base = job.config, job.data, job.base
    splits = {"train": data.train, "eval": data.eval, "valid": data.valid}
    versions = {name: number.split(".")[0] for name, number in version.versions().items() if name in _PACKAGES}
    own = config.model_dump(mode="json", exclude=set(_FREE))
    inputs: dict[str, Any] = {
        f"rows of {name}": split.table.sha256 for name, split in splits.items() if split is not None
    }
    asked = prompts.fingerprint(base, config.data.chat, config.data.chat_date or date.today())
    inputs |= {"base": base.info.sha256, "parameters": base.model.num_parameters(), "prompts": asked}
    inputs |= {"tokenizer": tokenizer_sha256(base.tokenizer)}
    inputs |= {"checkpoint": list(base.info.reconciled), "wording of prompts": prompts.VERSION}
    inputs |= {f"major version of {name}": version for name, version in versions.items()}
    as_stored: dict[str, Any] = json.loads(to_json(dict(_flat(own)) | inputs))
    return as_stored


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text
